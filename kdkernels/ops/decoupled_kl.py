"""`kdkernels::decoupled_kl` for torch: see row_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._names import REDUCTIONS
from .._shared.denominator import as_denominator
from .._shared.rows import arithmetic, reduce_rows
from .fused_loss import explained
from .row_loss import RowLoss, check_labels

__all__ = ["decoupled_kl"]


def _by_twin(*, row_temperature: Tensor | None, temperature: float, return_parts: bool, **shared: Any) -> Tensor:
    if shared["reduction"] in ("none", "sum"):
        shared["denominator"] = None
    return reference.decoupled_kl(temperature=temperature if row_temperature is None else row_temperature, **shared)


_OP = RowLoss("decoupled_kl", _by_twin, differentiable=2)


def decoupled_kl(
    *,
    function: str,  # the public one, whose name errors bear
    student: Tensor,
    teacher: Tensor,
    target: Tensor,  # int64, row shape
    temperature: float | Tensor = 4.0,  # a tensor: row shape
    alpha: float = 1.0,
    beta: float = 8.0,
    return_parts: bool = False,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str,
    dim: int,  # >= 0
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its parts where asked for: NCKD and TCKD in a new first dimension, before their weights."""
    dtype, grad = arithmetic(student, teacher), torch.is_grad_enabled()
    denominator = as_denominator(denominator, student)
    row_temperature = None
    if isinstance(temperature, Tensor):
        row_temperature, temperature = temperature.detach().to(dtype), 1.0
    # The gradient of a weight is the loss of its row, which the op has only when it does not reduce.
    learned = row_weight is not None and row_weight.requires_grad
    arguments = (
        student,
        teacher,
        target,
        mask,
        None if learned or row_weight is None else row_weight.to(dtype),
        row_temperature,
        denominator,
        temperature,
        alpha,
        beta,
        return_parts,
        ignore_index,
        REDUCTIONS["none" if learned else reduction],
        0,
        dim,
        grad and student.requires_grad,
        grad and teacher.requires_grad,
    )
    loss, parts = explained(_OP, arguments, check_labels, function, target, student.shape[dim], ignore_index)
    if not learned:
        return loss, parts
    counted = target != ignore_index if mask is None else mask & (target != ignore_index)
    terms = (loss, *parts.unbind(0)) if return_parts else (loss,)
    loss, *parts = (reduce_rows(each, counted, row_weight, reduction, 1, denominator) for each in terms)
    return loss, torch.stack(parts).detach() if return_parts else None
