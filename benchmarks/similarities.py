"""What the benchmarks of losses on similarities share: the contenders of one of them, and their table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from . import resident
from .timing import Call, alternate, peak_bytes, ratio, seconds_per_row, spread

# Of query, key, the teacher's query and key, and the positive of each query.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
BAND = 2048  # queries whose similarities the product that everybody is measured against keeps


def step(loss: Loss, queries: int, keys: int, width: int, dtype: torch.dtype, device: str) -> Call:
    """Forward + backward of one batch."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, teacher_query, teacher_key = (
        torch.randn(rows, width, generator=generator, device=device, dtype=dtype) for rows in (queries, keys) * 2
    )
    query.requires_grad_(), key.requires_grad_()
    positive = torch.arange(queries, device=device) * keys // queries

    def call():
        loss(query, key, teacher_query, teacher_key, positive).backward()
        query.grad = key.grad = None

    return call


def product(queries: int, keys: int, width: int, dtype: torch.dtype, device: str) -> Call:
    """The similarities of at most a band of the queries: one multiplication of matrices by torch."""
    query, key = (torch.randn(rows, width, device=device, dtype=dtype) for rows in (min(queries, BAND), keys))
    out = query @ key.T
    return lambda: torch.mm(query, key.T, out=out)


def measure(module: ModuleType, device: str, dtype: torch.dtype, quick: bool) -> list[dict]:
    results = []
    shapes = module.QUICK_SHAPES if quick else module.CUDA_SHAPES if device == "cuda" else module.CPU_SHAPES
    for loss, (ours, eager, products) in module.LOSSES.items():
        for shape in shapes[loss]:
            torch._dynamo.reset()
            calls = {
                "kdkernels": step(ours, *shape, dtype, device),
                "eager": step(eager, *shape, dtype, device),
                "compile": step(torch.compile(eager), *shape, dtype, device),
                "product": product(*shape, dtype, device),
            }
            times = alternate(calls, device, seconds=seconds_per_row(quick))
            bands = shape[0] / min(shape[0], BAND)
            results.append(
                {
                    "loss": loss,
                    "shape": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "microseconds": {name: statistics.median(of) * 1e6 for name, of in times.items()},
                    "spread": {name: spread(of) for name, of in times.items()},
                    "over_eager": ratio(times, "eager", "kdkernels"),
                    "over_compile": ratio(times, "compile", "kdkernels"),
                    "of_matrix_rate": products * bands * ratio(times, "product", "kdkernels"),
                    "peak_bytes": peaks(module, loss, shape, dtype, device),
                }
            )
            print(".", end="", flush=True, file=sys.stderr)
    if device == "cpu" and not quick:
        # Too slow to be timed, and of a size that only memory limits.
        for loss in module.MEMORY_SHAPES:
            shape = module.MEMORY_SHAPES[loss]
            found = peaks(module, loss, shape, dtype, device)
            results.append({"loss": loss, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "peak_bytes": found})
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


def peaks(module: ModuleType, loss: str, shape: tuple, dtype: torch.dtype, device: str) -> dict[str, int]:
    """Bytes beyond the inputs, gradients included."""
    if device == "cuda":
        ours, eager, _ = module.LOSSES[loss]
        return {
            name: peak_bytes(step(function, *shape, dtype, device), device)
            for name, function in (("kdkernels", ours), ("eager", eager))
        }
    return {side: resident.growth(module.__name__, loss, side, shape, dtype) for side in ("kdkernels", "eager")}


def table(results: list[dict]) -> str:
    lines = [
        "| loss | queries x keys x width | dtype | kdkernels, us | over eager | over torch.compile "
        "| share of the matrix rate | peak memory, MB (eager) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        shape, peak = " x ".join(map(str, r["shape"])), r["peak_bytes"]
        times = "| | |"
        if "microseconds" in r:
            times = (
                f"{r['microseconds']['kdkernels']:.0f} ± {100 * r['spread']['kdkernels']:.0f} % | {r['over_eager']:.1f}x "
                f"| {r['over_compile']:.1f}x | {100 * r['of_matrix_rate']:.0f} %"
            )
        lines.append(
            f"| `{r['loss']}` | {shape} | {r['dtype']} | {times} "
            f"| {peak['kdkernels'] / 1e6:.0f} ({peak['eager'] / 1e6:.0f}) |"
        )
    return "\n".join(lines)
