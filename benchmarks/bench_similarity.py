"""Losses on similarities, forward + backward, against the expressions they replace.

Shapes: SSKD's batch of 64 images, where overhead is all; the batch of a contrastive recipe; on a GPU that of CLIP; and one
whose matrix of similarities takes 1 GiB, to be weighed and not timed on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

T = 0.07
SSKD, BATCH, CLIP = (192, 64, 128), (4096, 4096, 128), (65536, 65536, 512)


def cosines(query: Tensor, key: Tensor) -> Tensor:
    return F.normalize(query, dim=1, eps=1e-8) @ F.normalize(key, dim=1, eps=1e-8).T


def eager_similarity_kl(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    p = F.softmax(cosines(teacher_query, teacher_key) / 0.5, dim=1)
    log_q = F.log_softmax(cosines(query, key) / 0.5, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * 0.5 * 0.5


def eager_info_nce(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    return F.cross_entropy(cosines(query, key) / T, positive)


def eager_symmetric(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    logits = cosines(query, key) / T
    return (F.cross_entropy(logits, positive) + F.cross_entropy(logits.T, positive)) / 2


def eager_supervised(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    features, labels = torch.cat([query, key]), torch.cat([positive, positive])
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    log_q = F.log_softmax((cosines(features, features) / T).masked_fill(own, -torch.inf), dim=1)
    pairs = (labels[:, None] == labels) & ~own
    return (-log_q.masked_fill(~pairs, 0).sum(1) / pairs.sum(1)).mean()


def ours_similarity_kl(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    return kd.similarity_kl(query, key, teacher_query, teacher_key)


def ours_info_nce(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    return kd.info_nce(query, key, positive)


def ours_symmetric(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    return kd.info_nce(query, key, positive, symmetric=True)


def ours_supervised(query: Tensor, key: Tensor, teacher_query: Tensor, teacher_key: Tensor, positive: Tensor) -> Tensor:
    return kd.supervised_contrastive(torch.cat([query, key]), torch.cat([positive, positive]))


# What is called, what it replaces, and how many products of [queries, width] and [width, keys] there have to be: the
# similarities and two gradients, and those of the teacher; of twice as many rows on either side, four times as many.
LOSSES = {
    "similarity_kl": (ours_similarity_kl, eager_similarity_kl, 4),
    "info_nce": (ours_info_nce, eager_info_nce, 3),
    "info_nce, symmetric": (ours_symmetric, eager_symmetric, 3),
    "supervised_contrastive": (ours_supervised, eager_supervised, 12),
}
CPU_SHAPES = {
    "similarity_kl": [SSKD, BATCH],
    "info_nce": [SSKD, BATCH],
    "info_nce, symmetric": [BATCH],
    "supervised_contrastive": [(256, 256, 128), (2048, 2048, 128)],
}
CUDA_SHAPES = {
    "similarity_kl": [SSKD, BATCH],
    "info_nce": [SSKD, BATCH, CLIP],
    "info_nce, symmetric": [BATCH, CLIP],
    "supervised_contrastive": [(256, 256, 128), (2048, 2048, 128)],
}
QUICK_SHAPES = {
    "similarity_kl": [SSKD],
    "info_nce": [SSKD],
    "info_nce, symmetric": [(256, 256, 128)],
    "supervised_contrastive": [(256, 256, 128)],
}
MEMORY_SHAPES = {"similarity_kl": (16384, 16384, 256), "info_nce": (16384, 16384, 256)}
