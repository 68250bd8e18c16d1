"""`kdkernels::label_loss` for torch: see row_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._names import REDUCTIONS
from .._shared.denominator import as_denominator
from .._shared.label_targets import IGNORED, joint_labels, labels_from
from .._shared.rows import arithmetic
from ..reference.label_loss import label_loss as _twin
from .fused_loss import explained
from .row_loss import RowLoss, check_labels

__all__ = ["label_loss"]


def _by_twin(
    *,
    student: Tensor,
    target: Tensor,
    transforms: int,
    start: int,
    stop: int,
    return_parts: bool,
    ignore_index: int,
    dim: int,
    **shared: Any,
) -> Tensor:
    if transforms > 1:
        target = joint_labels(target, transforms, student.shape[dim] // transforms, ignore_index)
        ignore_index = IGNORED
    if stop:
        student = student.narrow(dim, start, stop - start)
        target, ignore_index = labels_from(target, start, stop, ignore_index), IGNORED
    return _twin(student=student, target=target, ignore_index=ignore_index, dim=dim, **shared)


_OP = RowLoss("label_loss", _by_twin)


def label_loss(
    *,
    function: str,  # the public one, named in errors
    student: Tensor,
    target: Tensor,  # int64, one for every `transforms` rows
    teacher: Tensor | None = None,  # their confidences weigh the soft term
    confidence: Tensor | None = None,  # row shape; or these do
    on: float | Tensor = 1.0,  # the target's probability of the label, and of each other class
    off: float | Tensor = 0.0,
    relative: bool = False,  # the divergence from the target, not the cross entropy
    temperature: float = 1.0,  # of the soft term
    kl_weight: float = 1.0,
    ce_weight: float = 0.0,
    normalize: bool = False,  # confidences are divided by their mean
    transforms: int = 1,  # the label of row r is target[r // transforms] * transforms + r % transforms
    start: int = 0,
    stop: int = 0,  # columns start:stop alone; 0: all
    return_parts: bool = False,
    ignore_index: int = -100,
    denominator: float | Tensor | None = None,
    reduction: str,
    dim: int,  # >= 0
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its parts where asked for: soft and hard term in a new first dimension, before their weights."""
    if confidence is not None:
        confidence = confidence.detach().to(arithmetic(student))
    arguments = (
        student,
        target,
        teacher,
        confidence,
        as_denominator(denominator, student),
        on,
        off,
        relative,
        temperature,
        kl_weight,
        ce_weight,
        normalize,
        transforms,
        start,
        stop,
        return_parts,
        ignore_index,
        REDUCTIONS[reduction],
        0,
        dim,
        torch.is_grad_enabled() and student.requires_grad,
    )
    classes = stop - start if stop else student.shape[dim] // transforms
    return explained(_OP, arguments, check_labels, function, target, classes, ignore_index, start)
