"""Knowledge adjustment and dynamic temperature distillation: repaired targets, a temperature per row.

    T_i = temperature + (mean w - w_i) * beta         w large in rows that are hard for the student
    loss_i = T_i^2 KL(A(softmax(teacher_i / T_i)) || softmax(student_i / T_i))

A leaves a target alone whose largest entry is the label's; else it exchanges these two entries ("ps") or
replaces the target by the smoothed label ("lsr"). Only softmax(student_i / T_i) is differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._shared.label_targets import smoothed_label
from .._shared.row_statistics import constant_temperature, cosine_statistic, doubt_statistic, row_temperatures
from .._shared.rows import arithmetic, hard_losses, label_probabilities, log_softmax, reduce_rows, usable_labels
from .softened_kl import softened_kl

__all__ = ["dynamic_temperature_kl"]


def dynamic_temperature_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # logits, the same shape where shared_classes is None; constant
    target: Tensor,  # row shape, int64 labels or ignore_index
    *,
    temperature: float | Tensor = 4.0,  # > 0; a tensor has no dimensions
    shared_classes: int | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    mode: str = "flsw",
    adjust: str = "none",
    smoothing: float = 0.1,
    normalize: str | None = None,
    t_min: float | None = 1.0,
    scale_by_t2: bool = True,
    ce_weight: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool; the KL term only
    row_weight: Tensor | None = None,  # row shape, float; the KL term only
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    dim %= student.dim()
    dtype = arithmetic(student, teacher)
    _checks.label_range("dynamic_temperature_kl", target, student.shape[dim], ignore_index)
    whole, labels = student, target
    if shared_classes is not None:
        student, teacher = (logits.narrow(dim, 0, shared_classes) for logits in (student, teacher))
        # A row whose label is beyond the shared classes is not adjusted.
        target = torch.where((target >= shared_classes) & (target < whole.shape[dim]), ignore_index, target)
    if mode == "const":
        row_temperature = constant_temperature(temperature, target, dtype)
    else:
        constant_student, constant_teacher = student.detach().to(dtype), teacher.detach().to(dtype)
        if mask is not None:  # a NaN in a hidden row must not reach the batch's mean
            constant_student, constant_teacher = (
                rows.masked_fill(~mask.unsqueeze(dim), 0) for rows in (constant_student, constant_teacher)
            )
        if mode == "cwsm":
            hardness = doubt_statistic(constant_student, dim)
        else:
            if adjust == "ps":
                constant_teacher = _exchanged(constant_teacher, target, ignore_index, dim)
            hardness = cosine_statistic(constant_student, constant_teacher, gamma, dim)
        row_temperature = row_temperatures(hardness, mask, temperature, beta, normalize, t_min, group)

    loss, parts = adjusted_kl(
        student,
        teacher,
        target,
        row_temperature,
        adjust=adjust,
        smoothing=smoothing,
        scale_by_t2=scale_by_t2,
        ce_weight=ce_weight,
        ignore_index=ignore_index,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
        hard=(whole.to(dtype), labels),
    )
    return (loss, {**parts, "temperature": row_temperature}) if return_parts else loss


def adjusted_kl(
    student: Tensor,  # [..., C] logits
    teacher: Tensor,  # the same shape, logits
    target: Tensor,  # row shape
    row_temperature: Tensor,  # row shape
    *,
    adjust: str,
    smoothing: float,
    scale_by_t2: bool,
    ce_weight: float,
    ignore_index: int,
    mask: Tensor | None,
    row_weight: Tensor | None,
    reduction: str,
    denominator: float | Tensor | None = None,
    dim: int,
    hard: tuple[Tensor, Tensor] | None = None,  # logits and labels of the cross entropy, if others
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss at given temperatures, and its parts."""
    student, teacher = (logits.to(arithmetic(student, teacher)) for logits in (student, teacher.detach()))
    if adjust == "ps":
        teacher = _exchanged(teacher, target, ignore_index, dim)
    log_target = log_softmax(teacher, row_temperature.unsqueeze(dim), dim)
    if adjust == "lsr":
        on, off = smoothed_label(student.shape[dim], smoothing, "paper")
        smoothed = label_probabilities(teacher, target, on, off, ignore_index, dim).log()
        misjudged = (target != ignore_index) & (teacher.argmax(dim) != target)
        log_target = torch.where(misjudged.unsqueeze(dim), smoothed, log_target)
    kl = softened_kl(
        student,
        log_target,
        temperature=row_temperature,
        teacher_kind="log_probs",
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )
    logits, labels = hard or (student, target)
    losses = hard_losses(logits, labels, 0.0, ignore_index, dim)
    ce = reduce_rows(losses, labels != ignore_index, None, reduction, 1, denominator)
    loss = kl + ce_weight * ce if ce_weight else kl  # a term of weight 0 adds 0, even where it is infinite
    return loss, {"kl": kl.detach(), "ce": ce.detach()}


def _exchanged(teacher: Tensor, target: Tensor, ignore_index: int, dim: int) -> Tensor:
    """Where the largest logit is not the label's, the two are exchanged."""
    label, ignored, poison = usable_labels(target, teacher.shape[dim], ignore_index)
    label = torch.where(ignored, teacher.argmax(dim), label).unsqueeze(dim)
    largest = teacher.argmax(dim, keepdim=True)
    of_label, of_largest = teacher.gather(dim, label), teacher.gather(dim, largest)
    exchanged = teacher.scatter(dim, label, of_largest).scatter(dim, largest, of_label)
    return exchanged * poison.to(teacher.dtype).unsqueeze(dim)
