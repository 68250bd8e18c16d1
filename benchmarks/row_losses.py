"""What the benchmarks of all row losses share: the contenders of one of them, and their table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .timing import Call, alternate, peak_bytes, ratio, seconds_per_row, spread

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
            function(student, teacher, target).backward()
            student.grad = None  # at the end: what a call leaves behind would be given back within the next

        return call

    source = torch.empty(tensors_moved * rows * classes // 2, device=device, dtype=dtype)
    destination = torch.empty_like(source)
    return {
        "kdkernels": step(ours),
        "eager": step(eager),
        "compile": step(torch.compile(eager)),
        "copy": lambda: destination.copy_(source),
    }


def measure(module: ModuleType, device: str, dtype: torch.dtype, quick: bool) -> list[dict]:
    results = []
    shapes = module.QUICK_SHAPES if quick else module.CUDA_SHAPES if device == "cuda" else module.CPU_SHAPES
    for loss, (ours, eager, tensors_moved) in module.LOSSES.items():
        for rows, classes in shapes:
            torch._dynamo.reset()
            calls = contenders(ours, eager, tensors_moved, rows, classes, dtype, device)
            times = alternate(calls, device, seconds=seconds_per_row(quick))
            gradient = rows * classes * dtype.itemsize
            results.append(
                {
                    "loss": loss,
                    "rows": rows,
                    "classes": classes,
                    "dtype": str(dtype).removeprefix("torch."),
                    "microseconds": {name: statistics.median(of) * 1e6 for name, of in times.items()},
                    "spread": {name: spread(of) for name, of in times.items()},
                    "over_eager": ratio(times, "eager", "kdkernels"),
                    "over_compile": ratio(times, "compile", "kdkernels"),
                    "of_copy_speed": ratio(times, "copy", "kdkernels"),
                    "peak_gradients": {name: peak_bytes(calls[name], device) / gradient for name in ("kdkernels", "eager")},
                }
            )
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


def table(results: list[dict]) -> str:
    lines = [
        "| loss | rows x classes | dtype | kdkernels, us | over eager | over torch.compile | share of copy speed "
        "| peak memory, gradients (eager) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        peak = r["peak_gradients"]
        lines.append(
            f"| `{r['loss']}` | {r['rows']} x {r['classes']} | {r['dtype']} | {r['microseconds']['kdkernels']:.0f} "
            f"± {100 * r['spread']['kdkernels']:.0f} % | {r['over_eager']:.1f}x | {r['over_compile']:.1f}x "
            f"| {100 * r['of_copy_speed']:.0f} % | {peak['kdkernels']:.1f} ({peak['eager']:.1f}) |"
        )
    return "\n".join(lines)
