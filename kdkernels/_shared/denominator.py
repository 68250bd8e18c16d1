"""What a mean divides by instead of the rows that it counts: the rows of all micro-batches and processes, for example."""

from __future__ import annotations

from math import nan

import torch
from torch import Tensor


def as_denominator(value: float | Tensor | None, like: Tensor) -> Tensor | None:
    """As an op takes it: float64, on the device of `like`. An op returns NaN for one that is not positive. Waits for a
    device only where that holds the value and `like` is on another one."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        value = value.detach().reshape(())
        if not value.is_cpu:
            value = value.to(like.device)
    elif not torch.compiler.is_compiling():
        return like.new_full((), value, dtype=torch.float64)
    # In a graph not torch.full, which would tie it to the value.
    return like.new_zeros((), dtype=torch.float64) + value


def divided(total: Tensor, denominator: float | Tensor) -> Tensor:
    """A sum over rows as their mean. NaN where a tensor is not positive: its value is not read on the host."""
    if isinstance(denominator, Tensor):
        denominator = denominator.detach().reshape(()).to(total.dtype)
        denominator = torch.where(denominator > 0, denominator, nan)
    return total / denominator
