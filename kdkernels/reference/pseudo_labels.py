"""The class that a network finds likeliest, where it is sure enough."""

from __future__ import annotations

import torch
from torch import Tensor

from .._open_numbers import scalar_like
from .._shared.rows import arithmetic

__all__ = ["pseudo_labels"]


def pseudo_labels(
    logits: Tensor,  # [..., C], any float dtype, classes along `dim`
    *,
    threshold: float | Tensor = 0.0,  # in [0, 1]; a tensor: [C]
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    ignore_index: int = -100,
    dim: int = -1,
) -> tuple[Tensor, Tensor]:
    logits = logits.detach().to(arithmetic(logits))  # no forward-mode derivatives either
    likeliest = logits.argmax(dim)
    # Shifted before the division: the difference of two large logits is exact, their quotients are not.
    confidence = 1 / ((logits - logits.amax(dim, keepdim=True)) / temperature).exp().sum(dim)
    least = threshold.detach().to(logits.dtype)[likeliest] if isinstance(threshold, Tensor) else scalar_like(logits, threshold)
    # A NaN reaches no threshold.
    return torch.where(confidence >= least, likeliest, ignore_index), confidence
