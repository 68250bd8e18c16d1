"""Divergences between a student's and a teacher's softened class distributions, row by row.

    q = softmax(student / T)        p = what the teacher gives, plus target_eps
    forward          sum p (log p - log m)     m = skew p + (1 - skew) q
    reverse          sum q (log q - log m)     m = (1 - skew) p + skew q
    jsd              beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q
    cross_entropy    - sum p log q
    tvd              sum |p - q| / 2

A class of probability 0 has the logarithm -inf, and 0 * log 0 = 0. Multiplying the two would be NaN, in the
value or in the gradient, so the logarithm is replaced *before* the product wherever the probability is 0.
The test is `== 0`, never `> 0`: a NaN has to stay one.
"""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from .. import _checks
from .._shared.rows import (
    arithmetic,
    hard_losses,
    hard_losses_of_probabilities,
    log_softmax,
    log_softmax_gap,
    reduce_rows,
    zero_loss,
)

__all__ = ["softened_kl", "soft_cross_entropy", "kd_loss"]


def softened_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # logits, log-probabilities or probabilities; see kdkernels.softened_kl
    *,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions or the row shape
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    teacher_kind: str = "logits",
    standardize: bool = False,
    shared_classes: int | None = None,
    target_eps: float = 0.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    dim %= student.dim()
    if shared_classes is not None:
        student, teacher = (logits.narrow(dim, 0, shared_classes) for logits in (student, teacher))
    dtype = arithmetic(student, teacher)
    temperature = _row_temperature(temperature, student.shape[:dim] + student.shape[dim + 1 :], mask, dtype)
    if mask is not None:
        # Hidden rows become harmless numbers first: a NaN there must not reach the gradient either.
        hidden = ~mask
        student = student.masked_fill(hidden.unsqueeze(dim), 0)
        teacher = teacher.masked_fill(hidden.unsqueeze(dim), 0)

    along_rows = temperature.unsqueeze(dim) if isinstance(temperature, Tensor) else temperature
    student, teacher = student.to(dtype), teacher.to(dtype)
    if standardize:
        student, teacher = standardized(student, dim), standardized(teacher, dim)
    log_q = log_softmax(student, along_rows, dim)
    p, log_p = _target(teacher, teacher_kind, along_rows, target_eps, dim)
    if teacher_kind == "logits" and target_eps == 0:
        gap = log_softmax_gap(student, teacher, along_rows, dim)
    else:
        gap = log_q - log_p
    losses = _class_terms(divergence, beta, skew, p, log_q.exp(), log_q, gap).sum(dim)

    if scale_by_t2:
        losses = losses * temperature**2
    return reduce_rows(losses, mask, row_weight, reduction, student.shape[dim], denominator)


def soft_cross_entropy(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # logits, log-probabilities or probabilities; see kdkernels.softened_kl
    *,
    temperature: float | Tensor = 1.0,
    teacher_kind: str = "logits",
    shared_classes: int | None = None,
    target_eps: float = 0.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    return softened_kl(
        student,
        teacher,
        temperature=temperature,
        divergence="cross_entropy",
        teacher_kind=teacher_kind,
        shared_classes=shared_classes,
        target_eps=target_eps,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )


def kd_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # logits, the same shape where shared_classes is None
    target: Tensor,  # row shape, int64 labels or ignore_index; or floats in the shape of student, probabilities
    *,
    temperature: float | Tensor = 4.0,
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    standardize: bool = False,
    shared_classes: int | None = None,
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    label_smoothing: float = 0.0,
    target_eps: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool; the KL term only
    mask_ignored: bool = False,
    row_weight: Tensor | None = None,  # row shape, float; the KL term only
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    dim %= student.dim()
    dtype = arithmetic(student, teacher)
    labelled = None
    if not target.is_floating_point():
        _checks.label_range("kd_loss", target, student.shape[dim], ignore_index)
        labelled = target != ignore_index
    if mask_ignored:
        mask = labelled if mask is None else mask & labelled

    def soft() -> Tensor:
        return softened_kl(
            student,
            teacher,
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            skew=skew,
            standardize=standardize,
            shared_classes=shared_classes,
            target_eps=target_eps,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )

    def hard() -> Tensor:
        if labelled is None:
            losses = hard_losses_of_probabilities(student.to(dtype), target.to(dtype), label_smoothing, dim)
        else:
            losses = hard_losses(student.to(dtype), target, label_smoothing, ignore_index, dim)
        # Under "elementmean" too the hard term is a mean over rows: it has one value per row, not per class.
        return reduce_rows(losses, labelled, None, reduction, 1, denominator)

    kl = soft() if kl_weight or return_parts else None
    ce = hard() if ce_weight or return_parts else None
    # A term of weight 0 adds exactly 0, even where it is infinite.
    loss = kl_weight * kl if kl_weight else zero_loss(student.select(dim, 0), reduction, student, teacher)
    loss = loss + ce_weight * ce if ce_weight else loss
    return (loss, {"ce": ce.detach(), "kl": kl.detach()}) if return_parts else loss


def _row_temperature(
    temperature: float | Tensor, rows: torch.Size, mask: Tensor | None, dtype: torch.dtype
) -> float | Tensor:
    """A constant. A row whose temperature is not positive becomes NaN: its value is not read on the host."""
    if not isinstance(temperature, Tensor):
        return temperature
    temperature = temperature.detach().to(dtype).expand(rows)
    temperature = torch.where(temperature > 0, temperature, nan)
    return temperature if mask is None else temperature.masked_fill(~mask, 1)


def _target(
    teacher: Tensor, kind: str, temperature: float | Tensor, eps: float, dim: int
) -> tuple[Tensor, Tensor]:
    """p and log p."""
    if kind == "probs":
        p = teacher + eps
        return p, _log(p)
    log_p = log_softmax(teacher, temperature, dim) if kind == "logits" else teacher
    if eps == 0:
        return log_p.exp(), log_p
    p = log_p.exp() + eps
    return p, _log(p)


def _log(p: Tensor) -> Tensor:
    """log p, -inf and without a gradient where p is 0."""
    absent = p == 0
    return torch.where(absent, 1, p).log().masked_fill(absent, -inf)


def standardized(logits: Tensor, dim: int) -> Tensor:
    """(logits - mean) / (sample standard deviation + 1e-7). A constant row becomes 0, with gradient 0. A class of -inf
    stays one: it counts neither in the mean nor in the deviation, and its gradient is 0."""
    absent = logits == -inf
    absent = absent & ~absent.all(dim, keepdim=True)  # a row without any class becomes NaN
    count = (~absent).sum(dim, keepdim=True)
    # Shifted first: the mean of a constant row may be rounded, that of zeros is not.
    shifted = (logits - logits.amax(dim, keepdim=True).detach()).masked_fill(absent, 0)
    distance = (shifted - shifted.sum(dim, keepdim=True) / count).masked_fill(absent, 0)
    variance = distance.square().sum(dim, keepdim=True) / (count - 1).clamp(min=1)
    constant = variance == 0
    deviation = torch.where(constant, 1, variance).sqrt()
    return (distance / (deviation + 1e-7)).masked_fill(constant, 0).masked_fill(absent, -inf)


def _class_terms(
    divergence: str, beta: float, skew: float, p: Tensor, q: Tensor, log_q: Tensor, gap: Tensor
) -> Tensor:
    """What each class adds to the divergence; gap: log q - log p."""
    if divergence == "cross_entropy":
        return -p * log_q.masked_fill(p == 0, 0)
    if divergence == "tvd":
        p, near = p.masked_fill(p == 0, 0), gap.abs() <= 1  # no gradient to a probability of 0
        difference = torch.where(near, p * torch.expm1(torch.where(near, gap, 0)), q - p)
        return difference.abs() / 2
    p_to_q, q_to_p = gap.masked_fill(p == 0, 0), (-gap).masked_fill(q == 0, 0)  # log(q / p), log(p / q)
    if divergence == "forward":
        return -p * (p_to_q if skew == 0 else _log_mixture(skew, 1 - skew, p_to_q))
    if divergence == "reverse":
        return -q * (q_to_p if skew == 0 else _log_mixture(skew, 1 - skew, q_to_p))
    p_to_mixture = _log_mixture(beta, 1 - beta, p_to_q)  # log(m / p)
    q_to_mixture = _log_mixture(1 - beta, beta, q_to_p)  # log(m / q)
    return -beta * p * p_to_mixture - (1 - beta) * q * q_to_mixture


def _log_mixture(own: float, other: float, gap: Tensor) -> Tensor:
    """log(own + other * exp(gap)), where own + other = 1: exact where gap is nearly 0, no overflow where it is
    large, and each branch fed with harmless numbers where it is not chosen."""
    near = gap.abs() <= 1
    decay = torch.where(near, 1, gap.abs()).neg().exp()
    far = torch.where(
        gap > 0,
        gap + torch.log(other + own * decay),
        torch.log(own + other * decay),
    )
    return torch.where(near, torch.log1p(other * torch.expm1(torch.where(near, gap, 0))), far)
