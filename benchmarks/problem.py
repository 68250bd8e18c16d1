"""What a family says of a loss that is to be measured, and nothing of how that is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Batch = Any  # a NamedTuple of tensors
Function = Callable[[Batch], Tensor]  # to a scalar
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """What nobody can avoid in one forward + backward, term by term. Terms named `gradient...` are written, others read."""

    bytes: dict[str, int]
    operations: dict[str, int]  # of floating-point numbers: an exponential is one, a multiply-add two
    matrix: Shape | None = None  # (m, k, n): operations are products of matrices, and torch.mm of these sizes is their floor

    @property
    def moved(self) -> int:
        return sum(self.bytes.values())

    @property
    def written(self) -> int:
        return sum(size for term, size in self.bytes.items() if term.startswith("gradient"))

    @property
    def computed(self) -> int:
        return sum(self.operations.values())


@dataclass(frozen=True)
class Loss:
    """A loss, what it replaces, and where it is measured."""

    name: str
    axes: str  # what the numbers of a shape are
    ours: Function
    eager: Function
    differentiated: tuple[str, ...]  # tensors of the batch
    draw: Callable[..., Batch]  # of *shape, dtype, device, generator
    work: Callable[..., Work]  # of *shape and the bytes of one number
    shapes: dict[str, dict[Shape, str]]  # "cpu", "cuda" and "quick" -> shape -> why this one
    others: dict[str, Function] = field(default_factory=dict)  # further forms of the same, by name
    comparable: bool = True  # with others on the same input; not so where each draws random numbers of its own
    resident: bool = False  # memory on a CPU is read from the system: torch's profiler sees no library's buffers
    memory_only: dict[Shape, str] = field(default_factory=dict)  # too slow to be timed on a CPU


def in_float(x: Tensor) -> Tensor:
    """In float32 at least, where losses are computed under autocast; float64 stays, for the sake of the truth."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
