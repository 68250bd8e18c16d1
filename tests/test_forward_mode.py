"""Derivatives in forward mode: the right ones, by the twins, wherever torch lets them be taken."""

import pytest
import torch
from all_losses import ALL, is_constant, leaves, tensors
from good_arguments import call
from helpers import assert_same_formula, draw
from torch.autograd import forward_ad

import kdkernels as kd

DOUBLE = torch.float64


def problem(name):
    """A loss, its tensors, a direction in which they move, and the derivative in it, by the op in reverse mode."""
    function = ALL[name]
    given = tensors(function, dtype=DOUBLE)
    directions = tuple(draw(*x.shape, seed=20 + at, dtype=DOUBLE) for at, x in enumerate(given.values()))
    free = [at for at, each in enumerate(given) if not is_constant(function, each)]
    values = tuple(given.values())
    learned = leaves(function, dtype=DOUBLE)
    with kd.backend("cpu"):
        loss = function(*learned)
    gradients = torch.autograd.grad(loss.sum(), [learned[at] for at in free])
    return function, values, directions, sum((g * directions[at]).sum() for g, at in zip(gradients, free))


@pytest.mark.parametrize("name", ALL)
def test_derivative_along_a_direction(name):
    function, given, directions, expected = problem(name)
    with kd.backend("cpu"):
        assert_same_formula(torch.func.jvp(function, given, directions)[1].sum(), expected)
        with forward_ad.dual_level():
            for primals in (given, leaves(function, dtype=DOUBLE)):
                duals = list(map(forward_ad.make_dual, primals, directions))
                assert_same_formula(forward_ad.unpack_dual(function(*duals)).tangent.sum(), expected)
            with torch.no_grad():
                assert_same_formula(forward_ad.unpack_dual(function(*duals)).tangent.sum(), expected)


@pytest.mark.parametrize("name", ALL)
def test_jacobians(name):
    function, given, directions, expected = problem(name)

    def total(*tensors):
        return function(*tensors).sum()

    for jacobian in (
        torch.func.jacfwd(total, tuple(range(len(given))))(*given),
        torch.autograd.functional.jacobian(total, given, strategy="forward-mode", vectorize=True),
    ):
        assert_same_formula(sum((j * v).sum() for j, v in zip(jacobian, directions)), expected)


@pytest.mark.parametrize("name", ["permuted", "contrast", "led"])
def test_linearized(name):
    """Traced with values that the checks must not look at: permutation, positives and labels."""
    function, given, directions, expected = problem(name)
    assert_same_formula(torch.func.linearize(function, *given)[1](*directions), expected)


@pytest.mark.parametrize("name", ["hinton", "attention"])
def test_compiled(name):
    function, given, directions, expected = problem(name)

    def derivative(given, directions):
        return torch.func.jvp(function, given, directions)[1].sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    compiled(*given)
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, given, directions)
        assert_same_formula(forward_ad.unpack_dual(compiled(*duals)).tangent.sum(), expected)
    assert_same_formula(torch.compile(derivative, backend="aot_eager")(given, directions), expected)


@pytest.mark.parametrize("name", ["hinton", "products", "led"])
def test_forward_over_reverse(name):
    """A product with the Hessian, against that of two passes in reverse."""
    function, given, directions, _ = problem(name)
    places = tuple(at for at, each in enumerate(tensors(function)) if not is_constant(function, each))
    gradient = torch.func.grad(function, places)
    moved = tuple(v if at in places else torch.zeros_like(v) for at, v in enumerate(directions))
    ours = torch.func.jvp(gradient, given, moved)[1]
    _, back = torch.func.vjp(gradient, *given)
    for at, product in zip(places, ours):
        assert_same_formula(product, back(tuple(directions[place] for place in places))[at])  # the Hessian is symmetric


@pytest.mark.parametrize(
    "name", ["softened_kl", "dkpp_loss", "virtual_teacher_loss", "similarity_kl", "memory_bank_nce", "mean_probabilities"]
)
def test_a_temperature_that_is_constant(name):
    """As where it requires grad: no derivative of 0 without a word."""

    def loss(temperature):
        return call(name, temperature=temperature)[0].sum()

    message = f"{name}: temperature must be a constant, got a tensor with a forward-mode derivative"
    for shape in ((), (4,)) if name == "softened_kl" else ((),):
        with pytest.raises(ValueError, match=message):
            torch.func.jvp(loss, (torch.ones(shape),), (torch.ones(shape),))


@pytest.mark.parametrize("name", ["hinton", "contrast", "led", "attention"])
def test_a_gradient_of_a_loss_from_outside(name):
    function = ALL[name]
    given = leaves(function)
    rows = {"reduction": "none"} if name == "contrast" else {}
    loss = function(*given, **rows)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(loss), torch.ones_like(loss))
        for create_graph in (False, True):
            with pytest.raises(NotImplementedError, match="compute the loss inside"):
                torch.autograd.grad(loss, given[0], upstream, retain_graph=True, create_graph=create_graph)
    assert torch.autograd.grad(loss, given[0], torch.ones_like(loss))[0].isfinite().all()
