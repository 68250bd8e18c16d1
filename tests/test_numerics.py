"""The guarantees of docs/numerics.md: roundings in every regime, and results that are exact."""

import math
import re

import pytest
import torch
from helpers import FLOATS, draw
from numerics import measure
from numerics_features import SIMILARITY_LOSSES
from numerics_rows import LOSSES, REGIMES
from numerics_tables import BOUND, FAMILIES, OF_LARGEST, PAGE, governing

import kdkernels as kd

pytestmark = pytest.mark.numeric

# A rounding of TF32 and of bfloat16, which CUDA multiplies half features in for their gradients, in those of float32.
CUDA_PRODUCTS = {torch.float16: 2.0**13, torch.bfloat16: 2.0**16}
# Where the oracle takes a second or more.
LARGE = ("262,144 classes", "32,768 classes", "16,384 negatives")
TOGETHER = [(name, regime) for losses, regimes in FAMILIES for name in losses for regime in regimes]
SMALL = [pair for pair in TOGETHER if pair[1] not in LARGE]
FUNCTIONS = {name: (loss, regimes) for losses, regimes in FAMILIES for name, loss in losses.items()}
BOUNDED = ("skewed forward", "skewed reverse", "tvd")  # hardly anything is left where p and q exclude each other
# Where every gradient is 0, nearer to 0 than the roundings of its terms, or of an infinite loss.
FLAT = [
    *((name, regime) for name, regime in SMALL if regime in ("equal rows", "1 class", "1 feature")),
    ("softened_kl, reverse", "one-hot teacher, -inf"),
    ("softened_kl, jsd", "logits of 1e4"),
    ("softened_kl, jsd", "T = 0.05"),
    *((f"softened_kl, {kind}", rows) for kind in BOUNDED for rows in ("logits of 1e4", "T = 0.05")),
    ("mean_probabilities", "logits of 1e4"),
]


def to(problem, device):
    return type(problem)(*(x.to(device) if torch.is_tensor(x) else x for x in problem))


def assert_within_bound(name, regime, dtype, device):
    loss, regimes = FUNCTIONS[name]
    errors = measure(loss, to(regimes[regime](dtype), device), device)
    products = CUDA_PRODUCTS.get(dtype, 1.0) if device == "cuda" and name in SIMILARITY_LOSSES else 1.0
    assert errors.loss <= BOUND and errors.gradient <= BOUND * products, errors
    limit = OF_LARGEST[governing(name, regime)] * products
    assert all(roundings <= limit or math.isnan(roundings) for roundings in errors.of_largest), errors


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name, regime", SMALL)
def test_errors_stay_within_the_published_roundings(machine, name, regime, dtype):
    assert_within_bound(name, regime, dtype, machine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, regime", [pair for pair in SMALL if pair not in FLAT])
def test_half_of_a_gradient_is_refused(name, regime, dtype):
    """Each gradient that is not 0: halved without a change of the loss."""
    loss, regimes = FUNCTIONS[name]

    def halved(problem):
        value = loss.ours(problem)
        return value / 2 + value.detach() / 2

    found = [x for x in measure(loss, regimes[regime](dtype), "cpu", halved).of_largest if not math.isnan(x)]
    assert found and min(found) > OF_LARGEST[governing(name, regime)]


@pytest.mark.parametrize("name", ["kd_loss", "label_smoothing_loss"])
def test_errors_do_not_grow_with_the_classes(device, name):
    assert_within_bound(name, "262,144 classes", torch.bfloat16, device)


@pytest.mark.long
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name, regime", [pair for pair in TOGETHER if pair[1] in LARGE])
def test_large_problems_stay_within_the_published_roundings(device, name, regime, dtype):
    assert_within_bound(name, regime, dtype, device)


def test_the_printed_tables_have_every_loss_and_nothing_beyond_its_bound():
    """The errors seen: of which losses, and of which rows under which bound."""
    ours = r"^\| `(.+?)` \|" + r" (\S+) / (\S+) \|" * len(FLOATS)
    seen = {name: map(float, errors) for name, *errors in re.findall(ours, PAGE, re.MULTILINE)}
    assert list(seen) == list(FUNCTIONS)
    assert all(max(errors) <= BOUND for errors in seen.values())
    of_largest = re.findall(r"^\| (.+?) \| (.+?) \|" + r" ([\d.e+]+) \|" * len(FLOATS) + "$", PAGE, re.MULTILINE)
    assert [(name, rows) for name, rows, *_ in of_largest] == list(OF_LARGEST)
    assert all(max(map(float, errors)) <= OF_LARGEST[name, rows] for name, rows, *errors in of_largest)


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
def test_equal_rows_and_single_classes_have_nothing_to_learn(machine, dtype):
    for regime in ("equal rows", "1 class"):
        problem = to(REGIMES[regime](dtype), machine)
        for name in ("softened_kl, forward", "softened_kl, reverse", "softened_kl, jsd"):
            student, teacher = (x.clone().requires_grad_() for x in problem[:2])
            with kd.backend(machine):
                loss = LOSSES[name].ours(problem._replace(student=student, teacher=teacher))
                loss.sum().backward()
            assert not loss.any() and not student.grad.any() and not teacher.grad.any()


def assert_zero(device, call, *tensors):
    """The loss, and the gradient of each of the tensors."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    with kd.backend(device):
        loss = call(*leaves)
        gradients = torch.autograd.grad(loss, leaves)
    assert loss == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf, 1e4], ids=str)
def test_masked_rows_are_zero_whatever_they_hold(machine, dtype, hidden):
    student, teacher = (torch.full((3, 100), hidden, dtype=dtype, device=machine) for _ in range(2))
    mask, ignored = torch.zeros(3, dtype=torch.bool, device=machine), torch.full((3,), -100, device=machine)
    for divergence in ("forward", "reverse", "jsd", "cross_entropy"):
        for kind in ("logits", "log_probs", "probs"):
            how = {"divergence": divergence, "teacher_kind": kind, "mask": mask}
            assert_zero(machine, lambda s, t: kd.softened_kl(s, t, **how), student, teacher)
    assert_zero(machine, lambda s, t: kd.soft_cross_entropy(s, t, mask=mask), student, teacher)
    assert_zero(machine, lambda s, t: kd.kd_loss(s, t, ignored, mask=mask), student, teacher)
    constant = [
        lambda s: kd.dkpp_loss(s, teacher, mask=mask),
        *(
            lambda s, mode=mode: kd.dynamic_temperature_kl(s, teacher, ignored, mode=mode, mask=mask)
            for mode in ("flsw", "cwsm", "const")
        ),
        lambda s: kd.virtual_teacher_loss(s, ignored),
        lambda s: kd.label_smoothing_loss(s, ignored),
        lambda s: kd.cwtm_loss(s, ignored, teacher),
    ]
    for call in constant:
        assert_zero(machine, call, student)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("hidden", [math.nan, math.inf, 1e4], ids=str)
def test_masked_queries_are_zero_whatever_they_hold(machine, dtype, hidden):
    """And whatever the keys hold, that none of them is compared with."""
    query = torch.full((6, 8), hidden, dtype=dtype, device=machine)
    mask, alike = (torch.zeros(6, dtype=kind, device=machine) for kind in (torch.bool, torch.int64))
    for key in (draw(6, 8, dtype=dtype, device=machine), query.clone()):
        assert_zero(machine, lambda q, k: kd.info_nce(q, k, mask=mask), query, key)
        assert_zero(machine, lambda q, k: kd.info_nce(q, k, mask=mask, symmetric=True), query, key)
        assert_zero(machine, lambda q, k: kd.similarity_kl(q, k, query, key, mask=mask), query, key)
        assert_zero(machine, lambda features: kd.supervised_contrastive(features, alike, mask=mask), key)
