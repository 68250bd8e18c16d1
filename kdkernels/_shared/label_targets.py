"""Targets that follow from the label alone: the probability of its class and of every other one."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from .._open_numbers import is_open, scalar


def virtual_teacher(
    classes: int, correct_prob: float, temperature: float | Tensor
) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """softmax(p / temperature) on the label and elsewhere, p being `correct_prob` on the label, the rest of 1
    shared by the others."""
    ahead = (correct_prob - (1 - correct_prob) / (classes - 1)) / temperature
    # Divided by the larger of the two exponentials, so that neither overflows.
    if is_open(ahead):  # math.exp would read its value
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


# What stands for an ignored label and for one out of range. Neither is a class, whatever `ignore_index` is.
IGNORED, NO_CLASS = -1, -2


def labels_from(target: Tensor, start: int, stop: int, ignore_index: int) -> Tensor:
    """Labels in [start, stop) counted from the first of them."""
    valid = (target >= start) & (target < stop)
    return torch.where(target == ignore_index, IGNORED, torch.where(valid, target - start, NO_CLASS))


def joint_labels(target: Tensor, transforms: int, classes: int, ignore_index: int) -> Tensor:
    """Labels [..., B] of images -> [..., B * transforms] of their transformed copies: the class-major label of class and
    transform, `transforms * label + number of the transform`."""
    label = labels_from(target, 0, classes, ignore_index).unsqueeze(-1)
    joint = transforms * label + torch.arange(transforms, device=target.device)
    return torch.where(label < 0, label, joint).flatten(-2)
