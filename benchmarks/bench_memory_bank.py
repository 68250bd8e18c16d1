"""memory_bank_nce, forward + backward with a known normalizer, against the expression it replaces; and its table.

Shapes: CRD's on CIFAR-100 and, on a GPU, the same with the bank of ImageNet, which no cache holds.
"""

from __future__ import annotations

import statistics
import sys
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .timing import Call, alternate, peak_bytes, ratio, seconds_per_row, spread

T, Z, EPS = 0.07, 1e5, 1e-7
# Rows, negatives, features, entries.
CIFAR, IMAGENET = (64, 16384, 128, 50_000), (256, 16384, 128, 1_281_167)
QUICK_SHAPES = [(16, 1024, 128, 5000)]
CPU_SHAPES = [(64, 1024, 128, 50_000), CIFAR]
CUDA_SHAPES = [CIFAR, IMAGENET]


def ours(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    return kd.memory_bank_nce(embedding, bank, index, normalizer=Z, temperature=T, eps=EPS)


def eager(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """As published: the entries gathered, a product of matrices per row, two logarithms."""
    noise = (index.shape[1] - 1) / len(bank)
    entries = torch.index_select(bank, 0, index.view(-1)).view(*index.shape, -1)
    p = torch.exp(torch.bmm(entries, embedding.unsqueeze(2)).squeeze(2).float() / T) / Z
    from_positive = torch.log(p[:, 0] / (p[:, 0] + noise + EPS))
    from_negatives = torch.log(noise / (p[:, 1:] + noise + EPS))
    return -(from_positive.sum() + from_negatives.sum()) / len(embedding)


# What is called and what it replaces.
LOSSES = {"memory_bank_nce": (ours, eager)}


def contenders(
    rows: int, negatives: int, width: int, entries: int, dtype: torch.dtype, device: str
) -> dict[str, Call]:
    """Name -> forward + backward of one batch. `copy` moves as many bytes as are gathered, one after another."""
    generator = torch.Generator(device).manual_seed(0)
    embedding, bank = (
        F.normalize(torch.randn(count, width, generator=generator, device=device), dim=1).to(dtype)
        for count in (rows, entries)
    )
    index = torch.randint(entries, (rows, negatives + 1), generator=generator, device=device)
    embedding.requires_grad_()

    def step(function):
        def call():
            function(embedding, bank, index).backward()
            embedding.grad = None

        return call

    source = torch.empty(index.numel() * width // 2, device=device, dtype=dtype)
    destination = torch.empty_like(source)
    return {
        "kdkernels": step(ours),
        "eager": step(eager),
        "compile": step(torch.compile(eager)),
        "copy": lambda: destination.copy_(source),
    }


def measure(module: ModuleType, device: str, dtype: torch.dtype, quick: bool) -> list[dict]:
    results = []
    for shape in QUICK_SHAPES if quick else CUDA_SHAPES if device == "cuda" else CPU_SHAPES:
        torch._dynamo.reset()
        calls = contenders(*shape, dtype, device)
        times = alternate(calls, device, seconds=seconds_per_row(quick))
        results.append(
            {
                "loss": "memory_bank_nce",
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "microseconds": {name: statistics.median(of) * 1e6 for name, of in times.items()},
                "spread": {name: spread(of) for name, of in times.items()},
                "over_eager": ratio(times, "eager", "kdkernels"),
                "over_compile": ratio(times, "compile", "kdkernels"),
                "of_copy_speed": ratio(times, "copy", "kdkernels"),
                "peak_bytes": {name: peak_bytes(calls[name], device) for name in ("kdkernels", "eager")},
            }
        )
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


def table(results: list[dict]) -> str:
    lines = [
        "| loss | rows x negatives x width, entries | dtype | kdkernels, us | over eager | over torch.compile "
        "| share of copy speed | peak memory, MB (eager) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        (*sizes, entries), peak = r["shape"], r["peak_bytes"]
        lines.append(
            f"| `{r['loss']}` | {' x '.join(map(str, sizes))}, {entries} | {r['dtype']} "
            f"| {r['microseconds']['kdkernels']:.0f} ± {100 * r['spread']['kdkernels']:.0f} % "
            f"| {r['over_eager']:.1f}x | {r['over_compile']:.1f}x | {100 * r['of_copy_speed']:.0f} % "
            f"| {peak['kdkernels'] / 1e6:.1f} ({peak['eager'] / 1e6:.1f}) |"
        )
    return "\n".join(lines)
