"""Runs of the benchmarks at no length, beside packages that do what packages may do."""

import json

import pytest
import torch

from benchmarks import harness, machine, packages, scaling
from benchmarks.families import FAMILIES, losses
from benchmarks.harness import Effort, measure
from benchmarks.packages import Package

LOSSES = {name: loss for family in FAMILIES for name, loss in losses(family).items()}


def package_that_writes_over_logits():
    def function(batch):
        loss = LOSSES["softened_kl"].eager(batch)
        batch.student.data.zero_()
        return loss

    return function


def package_that_cannot_be_imported():
    import no_such_module_of_a_package  # noqa: F401

    return lambda batch: None


def package_that_refuses():
    def function(batch):
        raise RuntimeError("out of\nsomething")

    return function


@pytest.fixture
def made_up_packages(monkeypatch):
    def package(distribution, function, **options):
        return Package(distribution, {"softened_kl": function}, **options)

    monkeypatch.setattr(
        packages,
        "PACKAGES",
        (
            package("torch", package_that_writes_over_logits, needs_gpu=False),
            package("numpy", package_that_cannot_be_imported, needs_gpu=False),
            package("pytest", package_that_refuses, needs_gpu=False),
            package("hypothesis", package_that_refuses),
            package("no-such-package", package_that_refuses, needs_gpu=False),
            Package("ninja", {"another loss": package_that_refuses}, needs_gpu=False),
        ),
    )


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(harness, "MOST_BATCHES", 2)


@pytest.fixture
def document(made_up_packages, uncompiled):
    """A run of one loss of each kind of floor, at no length."""
    effort = Effort(0.01, 0.01)
    results = [
        {"family": "softened_kl", **measure(LOSSES["softened_kl"], (16, 10), torch.float32, "cpu", effort)},
        {"family": "similarity", **measure(LOSSES["info_nce"], (12, 12, 6), torch.float32, "cpu", effort)},
    ]
    memory = {"kdkernels": {"resident_bytes": 1e6}, "eager": {"resident_bytes": 3e6}}
    results.append({**harness.heading(LOSSES["info_nce"], (16384, 16384, 256), torch.float32), "contenders": memory})
    point = {name: {"microseconds": 5.0, "peak_bytes": 10} for name in scaling.SIDES}
    sweep = {"loss": "softened_kl", "axis": "rows", "fixed": "10 classes", "points": [{"size": n, **point} for n in (1, 4)]}
    rates = {"float32": {"bytes_per_second": 1e10, "operations_per_second": 1e12}}
    found = {"machine": machine.facts("cpu"), "rates": rates, "results": results, "scaling": [sweep]}
    return json.loads(json.dumps(found))
