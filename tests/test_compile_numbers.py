"""A compiled loss is not compiled anew for every step of a ramp: two graphs serve all values of all its numbers."""

import inspect

import pytest
import torch
from helpers import draw, labels
from test_nn import PAIRS, arguments
from torch._dynamo.testing import CompileCounterWithBackend

import kdkernels as kd

STEPS = 12  # more than the graphs that torch.compile makes before it gives up, 8
RAMPS = {
    "temperature": (1.5, 4.0),
    "student_temperature": (0.5, 2.0),
    "correct_prob": (0.1, 0.9),  # from below 1 / C to above
    "ce_weight": (0.2, 2.0),
    "kl_weight": (2.0, 0.2),
    "beta": (0.1, 0.8),
    "gamma": (0.5, 1.5),
    "t_min": (0.5, 3.0),
    "smoothing": (0.5, 0.05),
    "label_smoothing": (0.0, 0.3),
    "target_eps": (0.01, 0.1),
    "eps": (1e-3, 1e-2),
    "normalizer": (10.0, 30.0),
    "ratio": (0.1, 0.9),
}


def numbers(function):
    """Names of the options that may be floats."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if "float" in str(each.annotation)]


def ramps(names):
    """All these numbers at each step."""
    for step in range(STEPS):
        share = step / (STEPS - 1)
        yield {name: (1 - share) * RAMPS[name][0] + share * RAMPS[name][1] for name in names}


def result(function, **given):
    """What it returns, flat, and the gradients of its first output."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in given.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name not in ("row_weight", "bank")
    }
    found = function(**{**given, **leaves})
    loss, *others = found if isinstance(found, tuple) else (found,)
    if not loss.requires_grad:
        return loss, others
    return loss, others, torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)


WITH_NUMBERS = {module: function for module, function in PAIRS.items() if numbers(function)}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("module", WITH_NUMBERS)
def test_attributes_of_a_module(module):
    function, (given, options) = PAIRS[module], arguments(module)
    loss, counter = module(**options), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in ramps(numbers(function)):
        for name, value in step.items():
            if name in given:
                given[name] = value
            else:
                setattr(loss, name, value)
        torch.testing.assert_close(result(compiled, **given), result(function, **{**options, **given, **step}))
    assert counter.frame_count == 2


@pytest.mark.parametrize("function", WITH_NUMBERS.values())
def test_arguments_of_a_function(function):
    module = next(module for module in PAIRS if PAIRS[module] is function)
    given, options = arguments(module)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for step in ramps(numbers(function)):
        step = {**given, **options, **step}
        torch.testing.assert_close(result(compiled, **step), result(function, **step))
    assert counter.frame_count == 2
