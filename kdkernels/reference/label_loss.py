"""Losses whose target follows from the label alone: `on` on its class, `off` on every other.

    virtual_teacher_loss    u = softmax(hand-made probabilities / temperature)   KL(u || q) + cross entropy
    label_smoothing_loss    u = smoothed one-hot                                 - sum u log q
    cwtm_loss               u = one-hot                                          - w log q_label

with q = softmax(student / T). Rows whose label is ignored drop out of everything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._shared.label_targets import over_rows, smoothed_label, virtual_teacher
from .._shared.row_statistics import confidence_weights, largest_probability
from .._shared.rows import arithmetic, hard_losses, label_probabilities, reduce_rows, zero_loss
from .softened_kl import softened_kl

__all__ = ["virtual_teacher_loss", "label_smoothing_loss", "cwtm_loss"]


def virtual_teacher_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, int64 labels or ignore_index
    *,
    correct_prob: float = 0.99,
    temperature: float | Tensor = 20.0,  # > 0; a tensor has no dimensions
    student_temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    _checks.label_range("virtual_teacher_loss", target, student.shape[dim], ignore_index)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(arithmetic(student))
    on, off = virtual_teacher(student.shape[dim], correct_prob, temperature)
    return label_loss(
        student,
        target,
        None,
        None,
        on,
        off,
        True,
        student_temperature,
        kl_weight,
        ce_weight,
        False,
        ignore_index,
        reduction,
        dim,
        denominator=denominator,
        return_parts=return_parts,
    )


def label_smoothing_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, int64 labels or ignore_index
    *,
    smoothing: float = 0.1,
    convention: str = "paper",
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    _checks.label_range("label_smoothing_loss", target, student.shape[dim], ignore_index)
    on, off = smoothed_label(student.shape[dim], smoothing, convention)
    reduction = over_rows(reduction)
    return label_loss(
        student,
        target,
        None,
        None,
        on,
        off,
        False,
        1.0,
        1.0,
        0.0,
        False,
        ignore_index,
        reduction,
        dim,
        denominator=denominator,
    )


def cwtm_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, int64 labels or ignore_index
    teacher: Tensor | None = None,  # logits, the shape of student where shared_classes is None; constant
    *,
    confidence: Tensor | None = None,  # row shape, in [0, 1]: the teacher's largest probabilities
    shared_classes: int | None = None,
    normalize: bool = True,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    group: torch.distributed.ProcessGroup | None = None,
    normalise: bool | None = None,
) -> Tensor:
    normalize = _checks.normalization("cwtm_loss", normalize, normalise)
    _checks.label_range("cwtm_loss", target, student.shape[dim], ignore_index)
    if teacher is not None and shared_classes is not None:
        teacher = teacher.narrow(dim, 0, shared_classes)
    return label_loss(
        student,
        target,
        teacher,
        confidence,
        1.0,
        0.0,
        False,
        1.0,
        1.0,
        0.0,
        normalize,
        ignore_index,
        over_rows(reduction),
        dim,
        denominator=denominator,
        group=group,
    )


def label_loss(
    student: Tensor,  # [..., C] logits
    target: Tensor,  # row shape
    teacher: Tensor | None,  # the shape of student: its confidences weigh the soft term
    confidence: Tensor | None,  # row shape: they are given
    on: float | Tensor,  # tensors: of the dtype of the arithmetic
    off: float | Tensor,
    relative: bool,  # KL(u || q), else -sum u log q
    temperature: float | Tensor,  # of the student in the soft term
    kl_weight: float,  # of the soft term
    ce_weight: float,  # of the cross entropy with the label
    normalize: bool,  # confidences are divided by their mean
    ignore_index: int,
    reduction: str,
    dim: int,
    *,
    denominator: float | Tensor | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """What the three have in common, with the arguments of the compiled op."""
    dim %= student.dim()
    dtype = arithmetic(student) if teacher is None else arithmetic(student, teacher)
    student = student.to(dtype)
    labelled = target != ignore_index

    def soft() -> Tensor:
        weight = confidence if teacher is None else largest_probability(teacher.to(dtype), dim)
        if weight is not None:
            weight = weight.detach().to(dtype)
            weight = confidence_weights(weight, labelled, group) if normalize else weight
        return softened_kl(
            student,
            label_probabilities(student, target, on, off, ignore_index, dim),
            temperature=temperature,
            divergence="forward" if relative else "cross_entropy",
            teacher_kind="probs",
            scale_by_t2=False,
            mask=labelled,
            row_weight=weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )

    def hard() -> Tensor:
        losses = hard_losses(student, target, 0.0, ignore_index, dim)
        return reduce_rows(losses, labelled, None, reduction, 1, denominator)

    kl = soft() if kl_weight or return_parts else None
    ce = hard() if ce_weight or return_parts else None
    # A term of weight 0 adds exactly 0, even where it is infinite.
    loss = kl_weight * kl if kl_weight else zero_loss(target, reduction, student)
    loss = loss + ce_weight * ce if ce_weight else loss
    return (loss, {"ce": ce.detach(), "kl": kl.detach()}) if return_parts else loss
