"""How far losses and gradients are from their formulas where arithmetic is at its limits, beside the eager formula in the
same dtype. numerics_tables.py prints the tables of docs/numerics.md, test_numerics.py asserts its bounds.

Errors are counted in roundings: what one rounding of the arithmetic type, made in every logarithm and every product of a
term, can move the result by (the scales of oracle.py). What is lost by storing a gradient in its own dtype is not counted.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

import kdkernels as kd

inf = math.inf


class Loss(NamedTuple):
    """Each is a function of a problem, a NamedTuple of tensors and numbers."""

    ours: Callable  # the loss, a number per row or one
    eager: Callable  # the same in a user's plain PyTorch
    truth: Callable  # of the problem in NumPy: the oracle's dict
    learns: tuple[str, ...]  # which of the tensors have a gradient


class Errors(NamedTuple):
    loss: float  # roundings
    gradient: float  # roundings, of the gradient that has most
    relative_loss: float  # norm of the error over the norm of the truth
    relative_gradient: float  # the same, of the first gradient


def measure(loss: Loss, problem: NamedTuple, backend: str, function: Callable | None = None) -> Errors:
    """Of the op, or of another function of the problem. Rows of infinite loss have whatever gradient."""
    numbers = {name: as_numpy(value) for name, value in problem._asdict().items()}
    truth = loss.truth(type(problem)(**numbers))
    leaves = {name: getattr(problem, name).detach().requires_grad_() for name in loss.learns}
    with kd.backend(backend):
        value = (function or loss.ours)(problem._replace(**leaves))
        gradients = torch.autograd.grad(value, [*leaves.values()], torch.ones_like(value))
    kind = torch.finfo(gradients[0].dtype)
    precision = torch.finfo(torch.promote_types(gradients[0].dtype, torch.float32)).eps / 2
    # Half a unit in the last place and half of the smallest number, of each number that is stored on the way.
    half_unit, half_smallest = kind.eps / 2, kind.smallest_normal * kind.eps / 2
    lost = {
        name: sum(half_unit * np.abs(x) + half_smallest for x in truth.get(f"stored_{name}", [truth[f"grad_{name}"].value]))
        for name in leaves
    }
    of_loss = compare(value, truth["loss"], precision * np.abs(truth["loss"].value), precision)
    finite = np.isfinite(truth["loss"].value)
    rows = finite if finite.size == len(gradients[0]) else slice(None if finite.all() else 0)
    found = [compare(g, truth[f"grad_{name}"], lost[name], precision, rows) for name, g in zip(leaves, gradients)]
    return Errors(of_loss[0], max(roundings for roundings, _ in found), of_loss[1], found[0][1])


def as_numpy(value):
    if not torch.is_tensor(value):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


@np.errstate(invalid="ignore")
def compare(ours, truth, lost, precision, rows=slice(None)):
    """(worst roundings, relative error), both infinite where only one of the two is a finite number. `lost`: by storing."""
    ours = as_numpy(ours).reshape(truth.value.shape)
    ours, value, scale, lost = ours[rows], truth.value[rows], truth.scale[rows], lost[rows]
    finite = np.isfinite(value)
    if not np.array_equal(ours[~finite], value[~finite], equal_nan=True) or not np.isfinite(ours[finite]).all():
        return inf, inf
    error = np.abs(ours - value)[finite]
    value, scale = value[finite], scale[finite]
    excess = np.maximum(error - lost[finite], 0)
    roundings = np.max(excess / np.maximum(precision * scale, 1e-300), initial=0.0)
    # Where the truth is 0, or float64 cannot tell it from 0, an error has no size to be relative to.
    size = np.linalg.norm(value)
    known = size > 2.0**-50 * np.linalg.norm(scale)
    return float(roundings), float(np.linalg.norm(error) / size) if known else math.nan
