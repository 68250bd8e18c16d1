"""The families of losses that are measured, each in the module bench_NAME.py of its own."""

from __future__ import annotations

import importlib

from .problem import Loss

FAMILIES = (
    "softened_kl",
    "label_loss",
    "dkpp_loss",
    "dynamic_temperature_kl",
    "linear_head",
    "similarity",
    "memory_bank",
    "peer_ensemble",
)


def losses(family: str) -> dict[str, Loss]:
    """By name, in the order of tables."""
    return {loss.name: loss for loss in importlib.import_module(f"benchmarks.bench_{family}").LOSSES}
