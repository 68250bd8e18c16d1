"""Losses on similarities against the expressions they replace."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Shape, Work

T = 0.07
BAND = 2048  # queries whose similarities the product that everybody is measured against keeps
SSKD = {(192, 64, 128): "SSKD's batch of 64 images: overhead is all"}
BATCH = {(4096, 4096, 128): "a contrastive recipe"}
CLIP = {(65536, 65536, 512): "CLIP's batch: the matrix of similarities takes 16 GiB in float32"}
LARGE = {(16384, 16384, 256): "a matrix of similarities of 1 GiB"}
PAIRS = {(256, 256, 128): "two views of a small batch", (2048, 2048, 128): "two views of a large one"}
QUICK = {(256, 256, 128): "a small batch"}


class Features(NamedTuple):
    query: Tensor  # [N, D]
    key: Tensor  # [M, D]
    teacher_query: Tensor  # [N, D]
    teacher_key: Tensor  # [M, D]
    positive: Tensor  # [N] int64, a row of the key


def draw(queries: int, keys: int, width: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Features:
    tensors = (torch.randn(rows, width, generator=generator, device=device).to(dtype) for rows in (queries, keys) * 2)
    return Features(*tensors, torch.arange(queries, device=device) * keys // queries)


def of_student(queries: int, keys: int, width: int, size: int) -> Work:
    product = 2 * queries * keys * width
    return Work(
        bytes={
            "query": queries * width * size,
            "key": keys * width * size,
            "gradient of query": queries * width * size,
            "gradient of key": keys * width * size,
        },
        operations={"similarities": product, "gradient of query": product, "gradient of key": product},
        matrix=(min(queries, BAND), width, keys),
    )


def of_teacher(queries: int, keys: int, width: int, size: int) -> Work:
    work = of_student(queries, keys, width, size)
    teacher = {"teacher's query": queries * width * size, "teacher's key": keys * width * size}
    similarities = {"teacher's similarities": 2 * queries * keys * width}
    return Work(teacher | work.bytes, similarities | work.operations, work.matrix)


def of_both_views(queries: int, keys: int, width: int, size: int) -> Work:
    rows = queries + keys
    return of_student(rows, rows, width, size // 2)  # each feature once, where a query and its key would be two


def cosines(query: Tensor, key: Tensor) -> Tensor:
    return F.normalize(query, dim=1, eps=1e-8) @ F.normalize(key, dim=1, eps=1e-8).T


def both_views(batch: Features) -> tuple[Tensor, Tensor]:
    """Features and labels."""
    return torch.cat([batch.query, batch.key]), torch.cat([batch.positive, batch.positive])


def eager_similarity_kl(batch: Features) -> Tensor:
    p = F.softmax(cosines(batch.teacher_query, batch.teacher_key) / 0.5, dim=1)
    log_q = F.log_softmax(cosines(batch.query, batch.key) / 0.5, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * 0.5 * 0.5


def eager_info_nce(batch: Features) -> Tensor:
    return F.cross_entropy(cosines(batch.query, batch.key) / T, batch.positive)


def eager_symmetric(batch: Features) -> Tensor:
    logits = cosines(batch.query, batch.key) / T
    return (F.cross_entropy(logits, batch.positive) + F.cross_entropy(logits.T, batch.positive)) / 2


def eager_supervised(batch: Features) -> Tensor:
    features, labels = both_views(batch)
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    log_q = F.log_softmax((cosines(features, features) / T).masked_fill(own, -torch.inf), dim=1)
    pairs = (labels[:, None] == labels) & ~own
    return (-log_q.masked_fill(~pairs, 0).sum(1) / pairs.sum(1)).mean()


def shapes(cpu: dict[Shape, str], cuda: dict[Shape, str], quick: dict[Shape, str]) -> dict[str, dict[Shape, str]]:
    return {"cpu": cpu, "cuda": cuda, "quick": quick}


COMMON = {
    "axes": "queries x keys x width",
    "differentiated": ("query", "key"),
    "draw": draw,
    "resident": True,
}
LOSSES = (
    Loss(
        "similarity_kl",
        ours=lambda batch: kd.similarity_kl(*batch[:4]),
        eager=eager_similarity_kl,
        work=of_teacher,
        shapes=shapes(SSKD | BATCH, SSKD | BATCH, SSKD),
        memory_only=LARGE,
        **COMMON,
    ),
    Loss(
        "info_nce",
        ours=lambda batch: kd.info_nce(batch.query, batch.key, batch.positive),
        eager=eager_info_nce,
        work=of_student,
        shapes=shapes(SSKD | BATCH, SSKD | BATCH | CLIP, SSKD),
        memory_only=LARGE,
        **COMMON,
    ),
    Loss(
        "info_nce, symmetric",
        ours=lambda batch: kd.info_nce(batch.query, batch.key, batch.positive, symmetric=True),
        eager=eager_symmetric,
        work=of_student,
        shapes=shapes(BATCH, BATCH | CLIP, QUICK),
        **COMMON,
    ),
    Loss(
        "supervised_contrastive",
        ours=lambda batch: kd.supervised_contrastive(*both_views(batch)),
        eager=eager_supervised,
        work=of_both_views,
        shapes=shapes(PAIRS, PAIRS, QUICK),
        **COMMON,
    ),
)
