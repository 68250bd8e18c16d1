"""Targets that follow from the label alone: what stands on its class and on every other."""

from __future__ import annotations

from math import exp

from torch import Tensor

from .._open_numbers import is_open, scalar


def virtual_teacher(
    classes: int, correct_prob: float, temperature: float | Tensor
) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """softmax(p / temperature) on the label and elsewhere, p being `correct_prob` on the label, the rest of 1
    shared by the others."""
    ahead = (correct_prob - (1 - correct_prob) / (classes - 1)) / temperature
    # Divided by the larger of the two exponentials, so that neither overflows.
    if is_open(ahead):  # math.exp would ask for its value
        ahead = scalar(ahead)
        on, off = ahead.clamp(max=0).exp(), (-ahead).clamp(max=0).exp()
    else:
        on, off = exp(min(ahead, 0)), exp(min(-ahead, 0))
    total = on + (classes - 1) * off
    return on / total, off / total


def smoothed_label(classes: int, smoothing: float, convention: str) -> tuple[float, float]:
    """On the label and elsewhere: the smoothed share goes to all classes ("paper") or to the others."""
    if convention == "paper":
        return 1 - smoothing + smoothing / classes, smoothing / classes
    return 1 - smoothing, smoothing / (classes - 1) if smoothing else 0.0


def over_rows(reduction: str) -> str:
    """A cross entropy with labels has one value per row: its "elementmean" is the mean over rows."""
    return "batchmean" if reduction == "elementmean" else reduction
