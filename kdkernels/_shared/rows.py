"""The parts of every row loss: a stable log-softmax, the hard label, the reduction over rows."""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from .._open_numbers import scalar_like
from .denominator import divided
from .modes import savable


def arithmetic(*logits: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in logits) else torch.float32


def log_softmax(logits: Tensor, temperature: float | Tensor, dim: int) -> Tensor:
    return _softened(logits, temperature, dim).log_softmax(dim)


def log_softmax_gap(student: Tensor, teacher: Tensor, temperature: float | Tensor, dim: int) -> Tensor:
    """log_softmax of the student less that of the teacher. The logarithm of the ratio of their sums replaces the
    difference of two logarithms: the rounding errors of those are as large as log C allows, and a loss times T^2
    makes them T^2 times larger."""
    z, t = _softened(student, temperature, dim), _softened(teacher, temperature, dim)
    z_sum, t_sum = (logits.exp().sum(dim, keepdim=True) for logits in (z, t))
    # The logarithm of the same quotient, whichever of the two is the student.
    log_sums = torch.where(t_sum >= z_sum, (t_sum / z_sum).log(), -(z_sum / t_sum).log())
    return (z - t) + log_sums


def _softened(logits: Tensor, temperature: float | Tensor, dim: int) -> Tensor:
    # Shifted before the division: the difference of two large logits is exact, their quotients are not. The
    # shift is no part of the function's derivative.
    return (logits - logits.amax(dim, keepdim=True).detach()) / temperature


def usable_labels(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels that can index, 0 in place of those that cannot; which rows are ignored; and a factor
    per row, 1, or NaN for a label out of range where no device can raise: loss and gradient become NaN."""
    ignored = target == ignore_index
    valid = (target >= 0) & (target < classes)
    return torch.where(valid & ~ignored, target, 0), ignored, torch.where(valid | ignored, 1.0, nan)


def label_probabilities(
    logits: Tensor, target: Tensor, on: float | Tensor, off: float | Tensor, ignore_index: int, dim: int
) -> Tensor:
    """A target in the shape of the logits: `on` on the label's class, `off` on every other."""
    label, _, poison = usable_labels(target, logits.shape[dim], ignore_index)
    on, off = scalar_like(logits, on), scalar_like(logits, off)
    is_label = torch.zeros_like(logits, dtype=torch.bool).scatter(dim, label.unsqueeze(dim), True)
    probabilities = torch.where(is_label, on, off)
    return probabilities * poison.to(logits.dtype).unsqueeze(dim)


def hard_losses(student: Tensor, target: Tensor, smoothing: float, ignore_index: int, dim: int) -> Tensor:
    """Cross entropy per row at temperature 1; some finite number in ignored rows."""
    label, ignored, poison = usable_labels(target, student.shape[dim], ignore_index)
    log_q = log_softmax(student.masked_fill(ignored.unsqueeze(dim), 0), 1, dim)
    losses = -log_q.gather(dim, label.unsqueeze(dim)).squeeze(dim)
    if smoothing == 1:  # not 0 * losses: that is NaN where a label's class is impossible
        losses = -log_q.mean(dim)
    elif smoothing > 0:
        losses = (1 - smoothing) * losses - smoothing * log_q.mean(dim)
    return losses * poison.to(losses.dtype)


def hard_losses_of_probabilities(student: Tensor, target: Tensor, smoothing: float, dim: int) -> Tensor:
    """Cross entropy per row at temperature 1 with a distribution over the classes, in the shape of the logits."""
    log_q = log_softmax(student, 1, dim)
    target = (1 - smoothing) * target + smoothing / student.shape[dim]
    return -(target * log_q.masked_fill((target == 0) & (log_q == -inf), 0)).sum(dim)


def reduce_rows(
    losses: Tensor,  # row shape
    mask: Tensor | None,  # row shape: the rows that count; no such row gives 0
    row_weight: Tensor | None,  # row shape
    reduction: str,
    classes: int,
    denominator: float | Tensor | None = None,  # of a mean, in place of the number of rows that count
) -> Tensor:
    if row_weight is not None:
        weight = row_weight if mask is None else row_weight.masked_fill(~mask, 0)
        losses = losses * savable(weight.to(losses.dtype))
    if mask is not None:
        losses = losses.masked_fill(~mask, 0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if denominator is not None:
        mean = divided(losses.sum(), denominator)
    else:
        mean = losses.sum() / (max(losses.numel(), 1) if mask is None else mask.sum().clamp(min=1))
    return mean / classes if reduction == "elementmean" else mean


def zero_loss(target: Tensor, reduction: str, *logits: Tensor) -> Tensor:
    """0 in the shape of the loss, with gradient 0 to all logits whatever they hold."""
    zero = sum(each.masked_fill(torch.ones_like(each, dtype=torch.bool), 0).sum() for each in logits)
    return zero.to(arithmetic(*logits)).expand(target.shape if reduction == "none" else ())
