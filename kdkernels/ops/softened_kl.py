"""`kdkernels::softened_kl` for torch: see row_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._names import DIVERGENCES, REDUCTIONS, TEACHER_KINDS
from .._shared.denominator import as_denominator
from .._shared.rows import arithmetic, reduce_rows
from .fused_loss import explained
from .row_loss import RowLoss, check_labels_of

__all__ = ["softened_kl"]


def _by_twin(
    *,
    target: Tensor | None,
    target_probs: Tensor | None,
    row_temperature: Tensor | None,
    temperature: float,
    mask_ignored: bool,
    ignore_index: int,
    scale_by_t2: bool,
    teacher_kind: str,
    kl_weight: float,
    ce_weight: float,
    label_smoothing: float,
    return_parts: bool,
    shared_classes: int,
    **shared: Any,
) -> Tensor:
    shared["temperature"] = temperature if row_temperature is None else row_temperature
    shared["shared_classes"] = shared_classes or None
    if target is None and target_probs is None:
        return reference.softened_kl(teacher_kind=teacher_kind, scale_by_t2=scale_by_t2, **shared)
    return reference.kd_loss(
        target=target if target_probs is None else target_probs,
        ce_weight=ce_weight,
        kl_weight=kl_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        mask_ignored=mask_ignored,
        **shared,
    )


_OP = RowLoss("softened_kl", _by_twin, differentiable=2)


def softened_kl(
    *,
    function: str,  # the public one, named in errors
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,  # int64 in row shape, or a distribution in the shape of student; None: no hard term
    temperature: float | Tensor = 1.0,  # a tensor: row shape
    teacher_kind: str = "logits",
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    target_eps: float = 0.0,
    standardize: bool = False,
    shared_classes: int | None = None,
    scale_by_t2: bool = True,
    kl_weight: float = 1.0,
    ce_weight: float = 0.0,
    label_smoothing: float = 0.0,
    return_parts: bool = False,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    mask_ignored: bool = False,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str,
    dim: int,  # >= 0
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its parts where asked for: soft and hard term in a new first dimension, before their weights."""
    if row_weight is not None and row_weight.requires_grad:
        return _with_learned_weight(**locals())
    row_temperature, target_probs = None, None
    if row_weight is not None:
        row_weight = row_weight.to(arithmetic(student, teacher))
    if isinstance(temperature, Tensor):
        row_temperature, temperature = temperature.detach().to(arithmetic(student, teacher)), 1.0
    if target is not None and target.dtype is not torch.int64:
        target_probs, target = target.detach(), None
    if denominator is not None:
        denominator = as_denominator(denominator, student)
    grad = torch.is_grad_enabled()
    arguments = (
        student,
        teacher,
        target,
        target_probs,
        mask,
        row_weight,
        row_temperature,
        denominator,
        temperature,
        TEACHER_KINDS[teacher_kind],
        DIVERGENCES[divergence],
        beta,
        skew,
        target_eps,
        standardize,
        mask_ignored,
        shared_classes or 0,
        scale_by_t2,
        kl_weight,
        ce_weight,
        label_smoothing,
        return_parts,
        ignore_index,
        REDUCTIONS[reduction],
        0,
        dim,
        grad and student.requires_grad,
        grad and teacher.requires_grad,
    )
    return explained(_OP, arguments, check_labels_of, function, target, student, dim, ignore_index)


def _with_learned_weight(
    *,
    target: Tensor | None,
    mask: Tensor | None,
    mask_ignored: bool,
    row_weight: Tensor,
    denominator: float | Tensor | None,
    kl_weight: float,
    ce_weight: float,
    return_parts: bool,
    reduction: str,
    **shared: Any,
) -> tuple[Tensor, Tensor | None]:
    student, dim = shared["student"], shared["dim"]
    counted = mask
    if mask_ignored:
        labelled = target != shared["ignore_index"]
        counted = labelled if mask is None else mask & labelled
    denominator = as_denominator(denominator, student)
    losses, _ = softened_kl(mask=counted, reduction="none", **shared)
    kl = reduce_rows(losses, counted, row_weight, reduction, shared["shared_classes"] or student.shape[dim], denominator)
    if target is None:
        return kl, None
    loss, parts = softened_kl(
        target=target,
        kl_weight=0.0,
        ce_weight=ce_weight,
        return_parts=return_parts,
        denominator=denominator,
        reduction=reduction,
        **shared,
    )
    loss = loss + kl_weight * kl if kl_weight else loss
    return loss, torch.stack((kl.detach(), parts[1])) if return_parts else None
