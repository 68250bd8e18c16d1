"""`kdkernels::dkpp_loss` for torch: see row_loss.py."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._shared.permutation import random_permutation
from .row_loss import RowLoss


def _reference(
    student: Tensor,
    teacher: Tensor,
    permutation: Tensor | None,  # classes last
    mask: Tensor | None,
    row_weight: Tensor | None,
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
        dim=dim,
    )


dkpp_loss = RowLoss("dkpp_loss", _reference)
