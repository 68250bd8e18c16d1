"""`kdkernels::dynamic_temperature_kl` for torch: see row_loss.py."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._names import ADJUSTMENTS, TEMPERATURE_MODES
from ..reference.dynamic_temperature_kl import adjusted_kl
from .row_loss import RowLoss

_MODE_OF = {code: name for name, code in TEMPERATURE_MODES.items()}
_ADJUSTMENT_OF = {code: name for name, code in ADJUSTMENTS.items()}


def _reference(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    mask: Tensor | None,
    row_weight: Tensor | None,
    row_temperature: Tensor | None,
    temperature: float,
    beta: float,
    gamma: float,
    mode: int,
    adjust: int,
    smoothing: float,
    l1: bool,
    t_min: float,
    scale_by_t2: bool,
    ce_weight: float,
    return_parts: bool,
    ignore_index: int,
    reduction: str,
    dim: int,
) -> Tensor:
    shared = dict(
        adjust=_ADJUSTMENT_OF[adjust],
        smoothing=smoothing,
        scale_by_t2=scale_by_t2,
        ce_weight=ce_weight,
        ignore_index=ignore_index,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        dim=dim,
    )
    if row_temperature is not None:
        return adjusted_kl(student, teacher, target, row_temperature, **shared)[0]
    return reference.dynamic_temperature_kl(
        student,
        teacher,
        target,
        temperature=temperature,
        beta=beta,
        gamma=gamma,
        mode=_MODE_OF[mode],
        normalize="l1" if l1 else None,
        t_min=t_min,
        **shared,
    )


dynamic_temperature_kl = RowLoss("dynamic_temperature_kl", _reference, row_outputs=1)
