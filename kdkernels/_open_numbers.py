"""Numbers that a graph leaves open.

Under torch.compile a number that was another one in an earlier call becomes symbolic, so that one graph serves all its
values. Whoever asks for the value closes it again, and each value gets a graph of its own: a `float` argument of an op,
torch.full, torch.tensor, math.exp. Sums, products and comparisons with tensors do not ask.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_open(number: float | Tensor) -> bool:
    """Whether it is a tensor, or will have other values in the graph being traced."""
    if isinstance(number, Tensor):
        return True
    if not torch.compiler.is_compiling():
        return False
    # Here, for it takes longer to import than all of this package.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(number)


def scalar(number: float | Tensor) -> Tensor:
    """As a float64 tensor in host memory, where it can be read without waiting for a device."""
    if isinstance(number, Tensor):
        return number
    return torch.zeros((), dtype=torch.float64, device="cpu") + number


def scalar_like(tensor: Tensor, number: float | Tensor) -> Tensor:
    """Of this tensor's dtype and device."""
    return (tensor.new_zeros(()) + number).to(tensor.dtype)
