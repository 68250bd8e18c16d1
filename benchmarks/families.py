"""The families of losses that are measured: the modules bench_NAME.py of this package."""

from __future__ import annotations

import importlib
from pathlib import Path

from .problem import Loss

FAMILIES = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))


def losses(family: str) -> dict[str, Loss]:
    """By name, in the order of tables."""
    return {loss.name: loss for loss in importlib.import_module(f"benchmarks.bench_{family}").LOSSES}
