"""How far losses and gradients are from their formulas where arithmetic is at its limits, beside the eager formula in the
same dtype. numerics_tables.py prints the tables of docs/numerics.md, test_numerics.py asserts its bounds.

Errors are counted in roundings: what one rounding of the arithmetic type, made in every logarithm and every product of a
term, can move the result by (the scales of row_oracle.py). Where terms are huge that may be more than the whole gradient, so its
errors are counted in roundings of its largest number too. What is lost by storing a gradient in its dtype is not counted.
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
    complete: Callable = lambda problem: problem  # the problem with what ours computes and the truth has to be told
    upstream: Callable = lambda problem: None  # gradient of the result, where that is no loss: 1 otherwise


class Errors(NamedTuple):
    loss: float  # roundings
    gradient: float  # roundings, of the gradient that has most
    relative_loss: float  # norm of the error over the norm of the truth
    relative_gradient: float  # the same, of the first gradient
    of_largest: tuple[float, ...]  # each gradient's, in roundings of its largest number; NaN where that is 0


def measure(loss: Loss, problem: NamedTuple, backend: str, function: Callable | None = None) -> Errors:
    """Of the op, or of another function of the problem. Rows of infinite loss have whatever gradient."""
    with kd.backend(backend):
        problem = loss.complete(problem)
        leaves = {name: getattr(problem, name).detach().requires_grad_() for name in loss.learns}
        value = (function or loss.ours)(problem._replace(**leaves))
        above = loss.upstream(problem)
        gradients = torch.autograd.grad(value, [*leaves.values()], torch.ones_like(value) if above is None else above)
    numbers = {name: as_numpy(tensor) for name, tensor in problem._asdict().items()}
    truth = loss.truth(type(problem)(**numbers))
    precision = torch.finfo(torch.promote_types(gradients[0].dtype, torch.float32)).eps / 2
    of_loss = compare(value, truth["loss"], [truth["loss"].value], precision)
    finite = np.isfinite(truth["loss"].value) | (above is not None)
    rows = finite if finite.shape == gradients[0].shape[:1] else slice(None if finite.all() else 0)
    found = []
    for name, gradient in zip(leaves, gradients):
        expected = truth[f"grad_{name}"]
        stored = truth.get(f"stored_{name}", [expected.value])
        found.append(compare(gradient, expected, stored, precision, rows))
    roundings, relative, of_largest = zip(*found)
    return Errors(of_loss[0], max(roundings), of_loss[1], relative[0], of_largest)


def as_numpy(value):
    if not torch.is_tensor(value):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


@np.errstate(invalid="ignore")
def compare(ours, truth, stored, precision, rows=slice(None)):
    """(worst roundings, relative error, worst roundings of the largest number), all infinite where only one of the two is a
    finite number. `stored`: each number that is rounded to the dtype of ours on the way; beyond its largest, to infinity."""
    kind = torch.finfo(ours.dtype)
    ours = as_numpy(ours).reshape(truth.value.shape)
    value = np.where(np.abs(truth.value) > kind.max * (1 + kind.eps / 4), np.copysign(inf, truth.value), truth.value)
    # Half a unit in the last place and half of the smallest number.
    lost = sum(kind.eps / 2 * np.abs(x) + kind.smallest_normal * kind.eps / 2 for x in stored)
    ours, value, scale, lost = ours[rows], value[rows], truth.scale[rows], lost[rows]
    finite = np.isfinite(value)
    if not np.array_equal(ours[~finite], value[~finite], equal_nan=True) or not np.isfinite(ours[finite]).all():
        return inf, inf, inf
    error = np.abs(ours - value)[finite]
    value, scale = value[finite], scale[finite]
    excess = np.maximum(error - lost[finite], 0)
    roundings = np.max(excess / np.maximum(precision * scale, 1e-300), initial=0.0)
    # Where the truth is 0, or float64 cannot tell it from 0, an error has no size to be relative to.
    largest = np.max(np.abs(value), initial=0.0)
    if not largest > 2.0**-50 * np.max(scale, initial=0.0):
        return float(roundings), math.nan, math.nan
    relative = np.linalg.norm(error) / np.linalg.norm(value)
    return float(roundings), float(relative), float(np.max(excess) / largest / precision)
