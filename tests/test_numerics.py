"""The guarantees of docs/numerics.md: roundings in every regime, and results that are exact."""

import math
import re
from pathlib import Path

import pytest
import torch
from helpers import FLOATS
from numerics import measure
from numerics_features import SIMILARITY_LOSSES
from numerics_rows import LOSSES, REGIMES
from numerics_tables import FAMILIES

import kdkernels as kd

# The bound that the page publishes.
BOUND = int(re.search(r"at most (\d+) roundings", (Path(__file__).parents[1] / "docs" / "numerics.md").read_text())[1])
# A rounding of TF32 and of bfloat16, which CUDA multiplies half features in for their gradients, in those of float32.
CUDA_PRODUCTS = {torch.float16: 2.0**13, torch.bfloat16: 2.0**16}
# Where the oracle takes a second or more.
LARGE = ("262,144 classes", "32,768 classes", "16,384 negatives")
TOGETHER = [(name, regime) for losses, regimes in FAMILIES for name in losses for regime in regimes]
FUNCTIONS = {name: (loss, regimes) for losses, regimes in FAMILIES for name, loss in losses.items()}


def to(problem, device):
    return type(problem)(*(x.to(device) if torch.is_tensor(x) else x for x in problem))


def assert_within_bound(name, regime, dtype, device):
    loss, regimes = FUNCTIONS[name]
    errors = measure(loss, to(regimes[regime](dtype), device), device)
    products = CUDA_PRODUCTS.get(dtype, 1.0) if device == "cuda" and name in SIMILARITY_LOSSES else 1.0
    assert errors.loss <= BOUND and errors.gradient <= BOUND * products, errors


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name, regime", [pair for pair in TOGETHER if pair[1] not in LARGE])
def test_errors_stay_within_the_published_roundings(device, name, regime, dtype):
    assert_within_bound(name, regime, dtype, device)


@pytest.mark.parametrize("name", ["kd_loss", "label_smoothing_loss"])
def test_errors_do_not_grow_with_the_classes(device, name):
    assert_within_bound(name, "262,144 classes", torch.bfloat16, device)


@pytest.mark.long
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name, regime", [pair for pair in TOGETHER if pair[1] in LARGE])
def test_large_problems_stay_within_the_published_roundings(device, name, regime, dtype):
    assert_within_bound(name, regime, dtype, device)


@pytest.mark.parametrize("name", ["softened_kl, forward", "kd_loss", "memory_bank_nce"])
def test_the_bound_refuses_half_precision_arithmetic(name):
    loss, regimes = FUNCTIONS[name]
    errors = measure(loss, next(iter(regimes.values()))(torch.bfloat16), "cpu", loss.eager)
    assert errors.loss > 10 * BOUND and errors.gradient > 10 * BOUND


@pytest.mark.parametrize("name", ["softened_kl, forward", "softened_kl, reverse"])
def test_nearly_equal_rows_in_bfloat16_lose_no_gradient_but_its_storing(device, name):
    problem = to(REGIMES["next to equal rows"](torch.bfloat16), device)
    half_unit = torch.finfo(torch.bfloat16).eps / 2
    assert measure(LOSSES[name], problem, device).relative_gradient <= half_unit
    assert measure(LOSSES[name], problem, device, LOSSES[name].eager).relative_gradient > 0.04


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equal_rows_and_single_classes_have_nothing_to_learn(device, dtype):
    for regime in ("equal rows", "1 class"):
        problem = to(REGIMES[regime](dtype), device)
        for name in ("softened_kl, forward", "softened_kl, reverse", "softened_kl, jsd"):
            student, teacher = (x.clone().requires_grad_() for x in problem[:2])
            with kd.backend(device):
                loss = LOSSES[name].ours(problem._replace(student=student, teacher=teacher))
                loss.sum().backward()
            assert not loss.any() and not student.grad.any() and not teacher.grad.any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("hidden", [math.nan, math.inf, 1e4], ids=str)
def test_masked_batches_are_zero_whatever_they_hold(device, dtype, hidden):
    student, teacher = (torch.full((3, 100), hidden, dtype=dtype, device=device) for _ in range(2))
    mask, ignored = torch.zeros(3, dtype=torch.bool, device=device), torch.full((3,), -100, device=device)
    calls = [
        lambda s: kd.softened_kl(s, teacher, mask=mask),
        lambda s: kd.soft_cross_entropy(s, teacher, mask=mask),
        lambda s: kd.kd_loss(s, teacher, ignored, mask=mask),
        lambda s: kd.dkpp_loss(s, teacher, mask=mask),
        lambda s: kd.dynamic_temperature_kl(s, teacher, ignored, mask=mask),
        lambda s: kd.virtual_teacher_loss(s, ignored),
        lambda s: kd.label_smoothing_loss(s, ignored),
        lambda s: kd.cwtm_loss(s, ignored, teacher),
        lambda s: kd.similarity_kl(s, teacher.detach().zero_(), s.detach(), teacher, mask=mask),
    ]
    for call in calls:
        leaf = student.clone().requires_grad_()
        with kd.backend(device):
            loss = call(leaf)
            loss.backward()
        assert loss == 0 and not leaf.grad.any()
