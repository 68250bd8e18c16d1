"""Divergences between a student's and a teacher's softened class distributions, row by row.

    q = softmax(student / T)        p = what the teacher gives, plus target_eps
    forward          sum p (log p - log q)
    reverse          sum q (log q - log p)
    jsd              beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q
    cross_entropy    - sum p log q

A class of probability 0 has the logarithm -inf, and 0 * log 0 = 0. Multiplying the two would be NaN, in the
value or in the gradient, so the logarithm is replaced *before* the product wherever the probability is 0.
The test is `== 0`, never `> 0`: a NaN has to stay one.
"""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from .. import _checks
from .._shared.rows import arithmetic, hard_losses, log_softmax, log_softmax_gap, reduce_rows, zero_loss

__all__ = ["softened_kl", "soft_cross_entropy", "kd_loss"]


def softened_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape; logits, probabilities or log-probabilities
    *,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions or the row shape
    divergence: str = "forward",
    beta: float = 0.5,
    teacher_kind: str = "logits",
    target_eps: float = 0.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    dim: int = -1,
) -> Tensor:
    dim %= student.dim()
    dtype = arithmetic(student, teacher)
    temperature = _row_temperature(temperature, student.shape[:dim] + student.shape[dim + 1 :], mask, dtype)
    if mask is not None:
        # Hidden rows become harmless numbers first: a NaN there must not reach the gradient either.
        hidden = ~mask
        student = student.masked_fill(hidden.unsqueeze(dim), 0)
        teacher = teacher.masked_fill(hidden.unsqueeze(dim), 0)

    along_rows = temperature.unsqueeze(dim) if isinstance(temperature, Tensor) else temperature
    student, teacher = student.to(dtype), teacher.to(dtype)
    log_q = log_softmax(student, along_rows, dim)
    p, log_p = _target(teacher, teacher_kind, along_rows, target_eps, dim)
    if teacher_kind == "logits" and target_eps == 0:
        gap = log_softmax_gap(student, teacher, along_rows, dim)
    else:
        gap = log_q - log_p
    losses = _class_terms(divergence, beta, p, log_q.exp(), log_q, gap).sum(dim)

    if scale_by_t2:
        losses = losses * temperature**2
    return reduce_rows(losses, mask, row_weight, reduction, student.shape[dim])


def soft_cross_entropy(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape; logits, probabilities or log-probabilities
    *,
    temperature: float | Tensor = 1.0,
    teacher_kind: str = "logits",
    target_eps: float = 0.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    dim: int = -1,
) -> Tensor:
    return softened_kl(
        student,
        teacher,
        temperature=temperature,
        divergence="cross_entropy",
        teacher_kind=teacher_kind,
        target_eps=target_eps,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        dim=dim,
    )


def kd_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape, logits
    target: Tensor,  # row shape, int64 labels or ignore_index
    *,
    temperature: float | Tensor = 4.0,
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    label_smoothing: float = 0.0,
    target_eps: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool; the KL term only
    row_weight: Tensor | None = None,  # row shape, float; the KL term only
    reduction: str = "batchmean",
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    dim %= student.dim()
    dtype = arithmetic(student, teacher)
    _checks.label_range("kd_loss", target, student.shape[dim], ignore_index)

    def soft() -> Tensor:
        return softened_kl(
            student,
            teacher,
            temperature=temperature,
            target_eps=target_eps,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            dim=dim,
        )

    def hard() -> Tensor:
        losses = hard_losses(student.to(dtype), target, label_smoothing, ignore_index, dim)
        # Under "elementmean" too the hard term is a mean over rows: it has one value per row, not per class.
        return reduce_rows(losses, target != ignore_index, None, reduction, classes=1)

    kl = soft() if kl_weight or return_parts else None
    ce = hard() if ce_weight or return_parts else None
    # A term of weight 0 adds exactly 0, even where it is infinite.
    loss = kl_weight * kl if kl_weight else zero_loss(target, reduction, student, teacher)
    loss = loss + ce_weight * ce if ce_weight else loss
    return (loss, {"ce": ce.detach(), "kl": kl.detach()}) if return_parts else loss


def _row_temperature(
    temperature: float | Tensor, rows: torch.Size, mask: Tensor | None, dtype: torch.dtype
) -> float | Tensor:
    """A constant. A row whose temperature is not positive becomes NaN: no device can be asked before."""
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


def _class_terms(divergence: str, beta: float, p: Tensor, q: Tensor, log_q: Tensor, gap: Tensor) -> Tensor:
    """What each class adds to the divergence; gap: log q - log p."""
    if divergence == "cross_entropy":
        return -p * log_q.masked_fill(p == 0, 0)
    if divergence == "forward":
        return p * (-gap).masked_fill(p == 0, 0)
    if divergence == "reverse":
        return q * gap.masked_fill(q == 0, 0)
    p_to_mixture = _log_mixture(gap.masked_fill(p == 0, 0), 1 - beta)  # log(m / p)
    q_to_mixture = _log_mixture((-gap).masked_fill(q == 0, 0), beta)  # log(m / q)
    return -beta * p * p_to_mixture - (1 - beta) * q * q_to_mixture


def _log_mixture(gap: Tensor, share: float) -> Tensor:
    """log((1 - share) + share * exp(gap)): exact where gap is nearly 0, no overflow where it is large, and
    each branch fed with harmless numbers where it is not chosen."""
    near = gap.abs() <= 1
    decay = torch.where(near, 1, gap.abs()).neg().exp()
    far = torch.where(
        gap > 0,
        gap + torch.log(share + (1 - share) * decay),
        torch.log((1 - share) + share * decay),
    )
    return torch.where(near, torch.log1p(share * torch.expm1(torch.where(near, gap, 0))), far)
