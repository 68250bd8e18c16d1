"""`kdkernels::dynamic_temperature_kl` for torch: see row_loss.py."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._names import ADJUSTMENTS, REDUCTIONS, TEMPERATURE_MODES
from .._shared.denominator import as_denominator
from .._shared.label_targets import over_rows
from .._shared.rows import arithmetic, reduce_rows
from ..reference.dynamic_temperature_kl import adjusted_kl
from .fused_loss import explained
from .label_loss import label_loss
from .row_loss import RowLoss, check_labels_of

__all__ = ["dynamic_temperature_kl"]


def _by_twin(
    *,
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    row_temperature: Tensor | None,
    temperature: float,
    beta: float,
    gamma: float,
    mode: str,
    l1: bool,
    t_min: float,
    return_parts: bool,
    **shared: Any,
) -> Tensor:
    if row_temperature is not None:
        return adjusted_kl(student, teacher, target, row_temperature, **shared)[0]
    return reference.dynamic_temperature_kl(
        student,
        teacher,
        target,
        temperature=temperature,
        beta=beta,
        gamma=gamma,
        mode=mode,
        normalize="l1" if l1 else None,
        t_min=t_min,
        **shared,
    )


_OP = RowLoss("dynamic_temperature_kl", _by_twin, row_outputs=1)


def dynamic_temperature_kl(
    *,
    function: str,  # the public one, named in errors
    student: Tensor,
    teacher: Tensor,
    target: Tensor,  # int64
    temperature: float = 4.0,
    row_temperature: Tensor | None = None,  # instead, where the caller knows them
    beta: float = 1.0,
    gamma: float = 1.0,
    mode: str = "flsw",
    adjust: str = "none",
    smoothing: float = 0.1,
    normalize: str | None = None,
    t_min: float | None = 1.0,
    scale_by_t2: bool = True,
    ce_weight: float = 0.0,
    return_parts: bool = False,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str,
    dim: int,  # >= 0
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The loss; its parts where asked for, soft and hard term in a new first dimension, before their weights; and the
    temperature of each row."""
    denominator = as_denominator(denominator, student)
    learned = row_weight is not None and row_weight.requires_grad
    given_weight = None if learned or row_weight is None else row_weight.to(arithmetic(student, teacher))
    arguments = (
        student,
        teacher,
        target,
        mask,
        given_weight,
        row_temperature,
        denominator,
        1.0 if row_temperature is not None else temperature,
        beta,
        gamma,
        TEMPERATURE_MODES[mode],
        ADJUSTMENTS[adjust],
        smoothing,
        normalize == "l1",
        -inf if t_min is None else t_min,
        scale_by_t2,
        0.0 if learned else ce_weight,
        return_parts and not learned,
        ignore_index,
        REDUCTIONS["none" if learned else reduction],
        0,
        dim,
        torch.is_grad_enabled() and student.requires_grad,
    )
    loss, parts, row_temperature = explained(
        _OP, arguments, check_labels_of, function, target, student, dim, ignore_index
    )
    if not learned:
        return loss, parts, row_temperature
    loss = reduce_rows(loss, mask, row_weight, reduction, student.shape[dim], denominator)
    if not (ce_weight or return_parts):
        return loss, parts, row_temperature
    ce, _ = label_loss(
        function=function,
        student=student,
        target=target,
        ignore_index=ignore_index,
        denominator=denominator,
        reduction=over_rows(reduction),
        dim=dim,
    )
    parts = torch.stack((loss.detach(), ce.detach()))
    return loss + ce_weight * ce if ce_weight else loss, parts, row_temperature
