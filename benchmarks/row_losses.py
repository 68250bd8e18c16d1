"""What the benchmarks of all row losses share: shapes, and the contenders of one of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .timing import Call

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of student, teacher, target


def contenders(
    ours: Loss,
    eager: Loss,
    tensors_moved: int,  # of the size of the logits: those read and the gradient
    rows: int,
    classes: int,
    dtype: torch.dtype,
    device: str,
) -> dict[str, Call]:
    """Name -> forward + backward of one batch. `copy` moves the bytes that cannot be avoided."""
    generator = torch.Generator(device).manual_seed(0)
    student, teacher = (
        torch.randn(rows, classes, generator=generator, device=device, dtype=dtype) * 3 for _ in range(2)
    )
    student.requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator, device=device)

    def step(function):
        def call():
            student.grad = None
            function(student, teacher, target).backward()

        return call

    source = torch.empty(tensors_moved * rows * classes // 2, device=device, dtype=dtype)
    destination = torch.empty_like(source)
    return {
        "kdkernels": step(ours),
        "eager": step(eager),
        "compile": step(torch.compile(eager)),
        "copy": lambda: destination.copy_(source),
    }
