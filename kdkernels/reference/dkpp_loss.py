"""Dark knowledge with permuted predictions: the teacher's distribution, all but its maximum shuffled."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._shared.permutation import draw_permutation
from .softened_kl import soft_cross_entropy

__all__ = ["dkpp_loss"]


def dkpp_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape, logits; constant
    *,
    permutation: Tensor | None = None,  # the same shape, int64; None: drawn
    generator: torch.Generator | None = None,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    dim: int = -1,
) -> Tensor:
    dim %= student.dim()
    teacher = teacher.detach()
    if permutation is None:
        permutation = draw_permutation(teacher, generator, dim)
    else:
        _checks.permutes_classes("dkpp_loss", permutation, dim)
    return soft_cross_entropy(
        student,
        teacher.gather(dim, permutation),  # softmax and permutation commute
        temperature=temperature,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        dim=dim,
    )
