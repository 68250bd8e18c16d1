"""memory_bank_nce with a known normalizer against the expression it replaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Work, in_float

T, Z, EPS = 0.07, 1e5, 1e-7
CIFAR, IMAGENET = (64, 16384, 128, 50_000), (256, 16384, 128, 1_281_167)
SHAPES = {
    "cpu": {(64, 1024, 128, 50_000): "few negatives", CIFAR: "CRD on CIFAR-100"},
    "cuda": {CIFAR: "CRD on CIFAR-100", IMAGENET: "the bank of ImageNet, which no cache holds"},
    "quick": {(16, 1024, 128, 5000): "few negatives of a small bank"},
}


class Bank(NamedTuple):
    embedding: Tensor  # [N, D] of length 1
    bank: Tensor  # [entries, D] of length 1
    index: Tensor  # [N, 1 + negatives] int64, the positive first


def draw(
    rows: int, negatives: int, width: int, entries: int, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Bank:
    embedding, bank = (
        F.normalize(torch.randn(count, width, generator=generator, device=device), dim=1).to(dtype)
        for count in (rows, entries)
    )
    return Bank(embedding, bank, torch.randint(entries, (rows, negatives + 1), generator=generator, device=device))


def work(rows: int, negatives: int, width: int, entries: int, size: int) -> Work:
    """An entry is read for each row that drew it: what two rows have in common is in a cache by luck only."""
    scores = rows * (negatives + 1)
    return Work(
        bytes={
            "entries": scores * width * size,
            "index": 8 * scores,
            "embedding": rows * width * size,
            "gradient": rows * width * size,
        },
        operations={"scores": 2 * scores * width, "gradient": 2 * scores * width},
    )


def ours(batch: Bank) -> Tensor:
    return kd.memory_bank_nce(*batch, normalizer=Z, temperature=T, eps=EPS)


def eager(batch: Bank) -> Tensor:
    """As published: the entries gathered, a product of matrices per row, two logarithms."""
    embedding, bank, index = batch
    noise = (index.shape[1] - 1) / len(bank)
    entries = torch.index_select(bank, 0, index.view(-1)).view(*index.shape, -1)
    p = torch.exp(in_float(torch.bmm(entries, embedding.unsqueeze(2)).squeeze(2)) / T) / Z
    from_positive = torch.log(p[:, 0] / (p[:, 0] + noise + EPS))
    from_negatives = torch.log(noise / (p[:, 1:] + noise + EPS))
    return -(from_positive.sum() + from_negatives.sum()) / len(embedding)


LOSSES = (
    Loss(
        "memory_bank_nce",
        axes="rows x negatives x width, entries",
        ours=ours,
        eager=eager,
        differentiated=("embedding",),
        draw=draw,
        work=work,
        shapes=SHAPES,
    ),
)
