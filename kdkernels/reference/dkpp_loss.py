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
    teacher: Tensor,  # logits, the same shape where shared_classes is None; constant
    *,
    permutation: Tensor | None = None,  # the shape of what is compared, int64; None: drawn
    generator: torch.Generator | None = None,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    shared_classes: int | None = None,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    dim %= student.dim()
    if shared_classes is not None:
        student, teacher = (logits.narrow(dim, 0, shared_classes) for logits in (student, teacher))
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
        denominator=denominator,
        dim=dim,
    )
