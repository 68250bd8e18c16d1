"""Decoupled knowledge distillation: the label's class against all others, and the others among themselves.

    q = softmax(student / T)     q_y: of the label     qhat_c = q_c / (1 - q_y): of another class     p: of the teacher
    TCKD = p_y (log p_y - log q_y) + (1 - p_y) (log(1 - p_y) - log(1 - q_y))
    NCKD = sum_{c != y} phat_c (log phat_c - log qhat_c)

KL(p || q) is TCKD + (1 - p_y) NCKD. Here the second has a weight of its own.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._shared.label_targets import over_rows
from .._shared.rows import arithmetic, reduce_rows, usable_labels, zero_loss
from .softened_kl import _row_temperature

__all__ = ["decoupled_kl"]


def decoupled_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape, logits
    target: Tensor,  # row shape, int64 labels or ignore_index
    *,
    temperature: float | Tensor = 4.0,  # > 0; a tensor has no dimensions or the row shape
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    dim %= student.dim()
    dtype, classes = arithmetic(student, teacher), student.shape[dim]
    _checks.label_range("decoupled_kl", target, classes, ignore_index)
    label, ignored, poison = usable_labels(target, classes, ignore_index)
    counted = ~ignored if mask is None else mask & ~ignored
    temperature = _row_temperature(temperature, target.shape, counted, dtype)
    along_rows = temperature.unsqueeze(dim) if isinstance(temperature, Tensor) else temperature
    # Rows that do not count become harmless numbers first: a NaN there must not reach the gradient either.
    hidden, is_label = ~counted.unsqueeze(dim), _is_label(student, label, dim)
    q, p = (_split(x.to(dtype).masked_fill(hidden, 0), is_label, along_rows, dim) for x in (student, teacher))

    def reduced(losses: Tensor) -> Tensor:
        losses = losses.squeeze(dim) * temperature**2 * poison.to(dtype)
        return reduce_rows(losses, counted, row_weight, over_rows(reduction), classes=1, denominator=denominator)

    tckd = reduced(_of_label(q, p)) if alpha or return_parts else None
    nckd = reduced(_of_others(q, p, dim)) if beta or return_parts else None
    # A term of weight 0 adds exactly 0, even where it is infinite.
    loss = alpha * tckd if alpha else zero_loss(target, reduction, student, teacher)
    loss = loss + beta * nckd if beta else loss
    return (loss, {"tckd": tckd.detach(), "nckd": nckd.detach()}) if return_parts else loss


class _Split(NamedTuple):
    """One row of logits, over T. The others are less their largest, and -inf for the label."""

    label: Tensor  # the label's logit less the largest of the others
    others: Tensor
    sums: Tensor  # of exp(others); 1 where all of them are 0
    none: Tensor  # that they are, one class alone included: then there is nothing but the label


def _is_label(logits: Tensor, label: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(logits, dtype=torch.bool).scatter(dim, label.unsqueeze(dim), True)


def _split(logits: Tensor, is_label: Tensor, temperature: float | Tensor, dim: int) -> _Split:
    # Shifted before the division: differences of two large logits are exact, their quotients are not.
    top = logits.amax(dim, keepdim=True).detach()
    shifted = logits - top
    others = shifted.masked_fill(is_label, -inf)
    largest = others.amax(dim, keepdim=True).detach()
    none = largest == -inf
    largest = largest.masked_fill(none, 0)
    label = (shifted.masked_fill(~is_label, 0).sum(dim, keepdim=True) - largest) / temperature
    others = (others - largest) / temperature
    sums = others.exp().sum(dim, keepdim=True).masked_fill(none, 1)
    return _Split(label, others, sums + 0 * top, none)  # a NaN or an infinite logit makes the whole row NaN


def _of_label(q: _Split, p: _Split) -> Tensor:
    """TCKD, from the log-odds of the label: log(q_y / (1 - q_y)) = label - log sums."""
    # Added where there is nothing but the label, so that NaN stays NaN.
    d, e = (each.label - each.sums.log() + torch.zeros_like(each.label).masked_fill(each.none, inf) for each in (q, p))
    p_label, p_others = e.sigmoid(), (-e).sigmoid()
    # Of nearly equal rows from e - d, and that from differences of logits: see log_softmax_gap.
    gap = (p.label - q.label) - (p.sums / q.sums).log()
    near = (gap.abs() < 1) & ~(q.none | p.none)
    gap = torch.where(near, gap, 0)
    zero = torch.zeros_like(gap)
    by_label = torch.where(near, (p_others * gap.expm1()).log1p(), _softplus(-d, zero) - _softplus(-e, zero))
    by_others = torch.where(near, (p_label * (-gap).expm1()).log1p(), _softplus(d, zero) - _softplus(e, zero))
    return _times(p_label, by_label) + _times(p_others, by_others)


def _softplus(x: Tensor, zero: Tensor) -> Tensor:
    return torch.logaddexp(x, zero)


def _of_others(q: _Split, p: _Split, dim: int) -> Tensor:
    """NCKD. Where the teacher leaves the others nothing, it says nothing of them: 0."""
    gap = (p.others - q.others) + (q.sums / p.sums).log()
    return _times(p.others.exp() / p.sums, gap).sum(dim, keepdim=True)


def _times(p: Tensor, logarithm: Tensor) -> Tensor:
    """0 where p is 0, gradients too; NaN stays NaN."""
    return p * torch.where(p == 0, 0, logarithm)
