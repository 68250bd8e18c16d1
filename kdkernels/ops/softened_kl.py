"""`kdkernels::softened_kl` for torch: see row_loss.py."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._names import DIVERGENCES, TEACHER_KINDS
from .row_loss import RowLoss

_KIND_OF = {code: name for name, code in TEACHER_KINDS.items()}
_DIVERGENCE_OF = {code: name for name, code in DIVERGENCES.items()}


def _reference(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    mask: Tensor | None,
    row_weight: Tensor | None,
    row_temperature: Tensor | None,
    temperature: float,
    source: int,
    divergence: int,
    beta: float,
    target_eps: float,
    scale_by_t2: bool,
    kl_weight: float,
    ce_weight: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    dim: int,
) -> Tensor:
    shared = dict(
        temperature=temperature if row_temperature is None else row_temperature,
        target_eps=target_eps,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        dim=dim,
    )
    if target is None:
        return reference.softened_kl(
            student,
            teacher,
            divergence=_DIVERGENCE_OF[divergence],
            beta=beta,
            teacher_kind=_KIND_OF[source],
            scale_by_t2=scale_by_t2,
            **shared,
        )
    return reference.kd_loss(
        student,
        teacher,
        target,
        ce_weight=ce_weight,
        kl_weight=kl_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        **shared,
    )


softened_kl = RowLoss("softened_kl", _reference, differentiable=2)
