"""`kdkernels::dkpp_loss` for torch: see row_loss.py."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, reference
from .._names import REDUCTIONS
from .._shared.denominator import as_denominator
from .._shared.permutation import draw_seed, random_permutation
from .._shared.rows import arithmetic, reduce_rows
from .fused_loss import explained
from .row_loss import RowLoss

__all__ = ["dkpp_loss"]


def _by_twin(
    *,
    student: Tensor,
    teacher: Tensor,
    permutation: Tensor | None,  # classes last
    mask: Tensor | None,
    row_weight: Tensor | None,
    denominator: Tensor | None,
    temperature: float,
    seed: Tensor | None,
    reduction: str,
    dim: int,
) -> Tensor:
    if permutation is None:
        permutation = random_permutation(teacher.argmax(dim), teacher.shape[dim], seed)
    return reference.dkpp_loss(
        student,
        teacher,
        permutation=permutation.movedim(-1, dim),
        temperature=temperature,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )


_OP = RowLoss("dkpp_loss", _by_twin)


def dkpp_loss(
    *,
    function: str,  # the public one, named in errors
    student: Tensor,
    teacher: Tensor,
    permutation: Tensor | None,  # shape of the logits, int64; None: drawn
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str,
    dim: int,  # >= 0
) -> Tensor:
    denominator = as_denominator(denominator, student)
    learned = row_weight is not None and row_weight.requires_grad
    given_weight = None if learned or row_weight is None else row_weight.to(arithmetic(student, teacher))
    arguments = (
        student,
        teacher,
        None if permutation is None else permutation.movedim(dim, -1),
        mask,
        given_weight,
        denominator,
        temperature,
        draw_seed(generator) if permutation is None else None,
        REDUCTIONS["none" if learned else reduction],
        0,
        dim,
        torch.is_grad_enabled() and student.requires_grad,
    )
    loss, _ = explained(_OP, arguments, _check_permutation, function, permutation, dim)
    if not learned:
        return loss
    return reduce_rows(loss, mask, row_weight, reduction, student.shape[dim], denominator)


def _check_permutation(function: str, permutation: Tensor | None, dim: int) -> None:
    if permutation is not None:
        _checks.permutes_classes(function, permutation, dim)
