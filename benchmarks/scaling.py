"""Time and memory against rows, classes, batch and width, ours beside eager PyTorch."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch

from . import harness
from .families import losses
from .problem import Shape

SIDES = ("kdkernels", "eager")  # the latter may not fit into memory


@dataclass(frozen=True)
class Sweep:
    family: str
    loss: str
    axis: str  # what grows
    fixed: str  # what does not
    shapes: tuple[Shape, ...]

    def size(self, shape: Shape) -> int:
        """Along the axis: what the smallest and the largest shape do not agree on."""
        first, last = self.shapes[0], self.shapes[-1]
        return next(n for n, a, b in zip(shape, first, last) if a != b)


def sweeps(device: str, quick: bool) -> tuple[Sweep, ...]:
    """By factors of 4; beyond the caches of the device."""
    most = 4 if quick else 8 if device == "cuda" else 6
    steps = [4**i for i in range(most)]
    return (
        Sweep("softened_kl", "softened_kl", "rows", "1,000 classes", tuple((n, 1000) for n in steps)),
        Sweep("softened_kl", "softened_kl", "classes", "64 rows", tuple((64, 8 * n) for n in steps)),
        Sweep("similarity", "info_nce", "batch", "128 features", tuple((4 * n, 4 * n, 128) for n in steps)),
        Sweep("similarity", "info_nce", "width", "batch of 512", tuple((512, 512, 2 * n) for n in steps)),
    )


def measure(device: str, dtype: torch.dtype, quick: bool, until: float = math.inf) -> list[dict]:
    effort, results = harness.Effort(0.2 if quick else 0.5, until=until), []
    for sweep in sweeps(device, quick):
        loss, points = losses(sweep.family)[sweep.loss], []
        for shape in sweep.shapes:
            found = harness.attempt(loss, shape, dtype, device, effort)["contenders"]
            point = {name: found[name] for name in SIDES if name in found}
            if loss.resident and device == "cpu" and not quick:
                for name, memory in harness.resident_memory(loss, sweep.family, shape, dtype).items():
                    point[name] = point.get(name, {}) | memory
            points.append({"size": sweep.size(shape), **point})
            print(".", end="", flush=True, file=sys.stderr)
        results.append({"loss": sweep.loss, "axis": sweep.axis, "fixed": sweep.fixed, "points": points})
    return results
