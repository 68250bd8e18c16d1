"""`denominator`: what a mean divides by instead of the rows it counts. The same rules for every loss that takes it."""

import inspect
import re

import numpy as np
import pytest
import torch
from good_arguments import GOOD
from helpers import FLOATS, assert_accurate, assert_same_formula

import kdkernels as kd

pytestmark = pytest.mark.numeric

DOUBLE = torch.float64
LEAVES = ("student", "students", "joint_logits", "query", "student_query", "features", "embedding")
PARAMETERS = {name: inspect.signature(getattr(kd, name)).parameters for name in GOOD}
FUNCTIONS = [name for name in GOOD if "denominator" in PARAMETERS[name]]
REDUCING = [name for name in FUNCTIONS if "reduction" in PARAMETERS[name]]
DENOMINATORS = {
    "float": 12.5,
    "int": 12,
    "NumPy's": np.float32(12.5),
    "float64": torch.tensor(12.5, dtype=torch.float64),
    "float16": torch.tensor([12.5], dtype=torch.float16),
    "int64": torch.tensor(12),
    "int32": torch.tensor([12], dtype=torch.int32),
}
MASK = torch.tensor([True, False, True, True])


def arguments(function, dtype, device):
    """Rounded to this dtype; which of them to differentiate."""

    def placed(value):
        if isinstance(value, (list, tuple)):
            return [placed(each) for each in value]
        return value.to(device, dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value

    given = {name: placed(value) for name, value in GOOD[function].items()}
    if "mask" in PARAMETERS[function]:
        given["mask"] = MASK.to(device)
    return given, next(name for name in LEAVES if name in given)


def evaluate(function, dtype=DOUBLE, device="cpu", twice=False, **options):
    """Loss and gradients; `twice`: of the numbers of this dtype, in float64."""
    given, name = arguments(function, dtype, device)
    if twice:
        given = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, given)
    several = isinstance(given[name], list)
    leaves = [leaf.detach().requires_grad_() for leaf in (given[name] if several else [given[name]])]
    loss = getattr(kd, function)(**{**given, name: leaves if several else leaves[0], **options})
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def summed(function):
    """Loss and gradients of the sum over the rows."""
    return evaluate(function, **({"reduction": "sum"} if function in REDUCING else {"denominator": 1}))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", DENOMINATORS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_divides_the_sum(function, kind, backend):
    value = DENOMINATORS[kind]
    with kd.backend(backend):
        assert_same_formula(
            evaluate(function, denominator=value), tuple(each / float(value) for each in summed(function))
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["batchmean", "elementmean"])
@pytest.mark.parametrize("function", REDUCING)
def test_matches_the_twin(device, function, reduction, dtype):
    if function == "memory_bank_nce" and reduction == "elementmean":
        return
    options = {"reduction": reduction, "denominator": 12.5}

    def twin():
        with kd.backend("reference"):
            return evaluate(function, dtype, device, twice=True, **options)

    assert_accurate(evaluate(function, dtype, device, **options), twin)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_tensor_that_is_not_positive(function, value, backend):
    with kd.backend(backend):
        loss, *gradients = evaluate(function, denominator=torch.tensor(value))
    assert loss.isnan()
    for gradient in gradients:
        # A hidden row of kd_loss has a label, one of supervised_contrastive is a key of others.
        hides = "mask" in PARAMETERS[function] and function not in ("kd_loss", "supervised_contrastive")
        hidden = ~MASK if hides else torch.zeros(len(gradient), dtype=torch.bool)
        if function != "supervised_contrastive":
            assert gradient[~hidden].isnan().all() and not gradient[hidden].any()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_row_that_counts(function):
    if "mask" in PARAMETERS[function] and "ce_weight" not in PARAMETERS[function]:
        given, name = arguments(function, DOUBLE, "cpu")
        given["mask"] = torch.zeros_like(MASK)
        assert getattr(kd, function)(**given, denominator=3.0) == 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_values(function):
    given, _ = arguments(function, torch.float32, "cpu")
    learned = torch.tensor(3.0, requires_grad=True)
    for value, kind, rule in (
        (0, ValueError, "denominator must be finite and > 0, got 0"),
        (-2.0, ValueError, "denominator must be finite and > 0, got -2.0"),
        (torch.nan, ValueError, "denominator must be finite and > 0, got nan"),
        (torch.inf, ValueError, "denominator must be finite and > 0, got inf"),
        ("4", TypeError, "denominator must be a number, got str"),
        (True, TypeError, "denominator must be a number, got bool"),
        (torch.tensor(True), TypeError, "denominator must hold a float or an integer, got bool"),
        (torch.tensor(1j), TypeError, "denominator must hold a float or an integer, got complex64"),
        (torch.ones(2), ValueError, "denominator must be a number or a tensor of shape [] or [1], got [2]"),
        (torch.ones(1, 1), ValueError, "denominator must be a number or a tensor of shape [] or [1], got [1, 1]"),
        (learned, ValueError, "denominator must be a constant, got a tensor that requires grad; use denominator.detach()"),
    ):
        with pytest.raises(kind, match=f"^{re.escape(f'{function}: {rule}')}$"):
            getattr(kd, function)(**given, denominator=value)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("function", REDUCING)
def test_what_is_no_mean_has_no_denominator(function, reduction):
    given, _ = arguments(function, torch.float32, "cpu")
    rule = (
        f"{function}: denominator is what a mean divides by, and reduction={reduction!r} is none; "
        "use reduction='batchmean' or leave denominator out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        getattr(kd, function)(**given, denominator=3.0, reduction=reduction)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_mapped(function, backend):
    """Of each problem of torch.vmap its own, and one for all of them."""
    given, name = arguments(function, DOUBLE, "cpu")
    if isinstance(given[name], list):
        return
    inputs, denominators = torch.stack([given[name], given[name].flip(0)]), torch.tensor([3.0, 5.0], dtype=DOUBLE)

    def loss(logits, denominator):
        return getattr(kd, function)(**{**given, name: logits}, denominator=denominator)

    def results(logits, denominator):
        return torch.func.grad_and_value(loss)(logits, denominator)

    with kd.backend(backend):
        for numbers, at in ((denominators, 0), (denominators[1], None)):
            ours = torch.vmap(results, in_dims=(0, at))(inputs, numbers)
            each = numbers.expand(2)
            expected = [results(logits, number) for logits, number in zip(inputs, each)]
            assert_same_formula(ours, tuple(map(torch.stack, zip(*expected))))


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if "row_weight" in PARAMETERS[name]])
def test_learned_weights(function):
    weight = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=DOUBLE)

    def results(**options):
        leaf = weight.clone().requires_grad_()
        given, _ = arguments(function, DOUBLE, "cpu")
        loss = getattr(kd, function)(**given, row_weight=leaf, **options)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    whole = results(reduction="sum")
    assert_same_formula(results(denominator=torch.tensor(8.0)), tuple(each / 8 for each in whole))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_second_derivatives(function):
    given, name = arguments(function, DOUBLE, "cpu")
    if isinstance(given[name], list):
        return

    def results(**options):
        leaf = given[name].clone().requires_grad_()
        loss = getattr(kd, function)(**{**given, name: leaf}, **options)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)

    whole = results(reduction="sum") if function in REDUCING else results(denominator=1.0)
    (ours,) = results(denominator=torch.tensor(4))
    assert_same_formula(ours, whole[0] / 16)


def test_parts_are_divided_too():
    for name in [name for name in FUNCTIONS if {"return_parts", "reduction"} <= PARAMETERS[name].keys()]:
        given, _ = arguments(name, DOUBLE, "cpu")
        parts = getattr(kd, name)(**given, denominator=12.5, return_parts=True)[1]
        whole = getattr(kd, name)(**given, reduction="sum", return_parts=True)[1]
        terms = parts.keys() - {"temperature", "normalizer", "positive"}
        assert_same_formula({at: parts[at] for at in terms}, {at: whole[at] / 12.5 for at in terms})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_modules_pass_it_on(function):
    module = {name.replace("_", "").lower(): getattr(kd.nn, name) for name in kd.nn.__all__}[function.replace("_", "")]
    given, _ = arguments(function, DOUBLE, "cpu")
    held = {name: given.pop(name) for name in list(given) if name in inspect.signature(module).parameters}
    ours = module(**held)(**given, denominator=12.5)
    assert ours == getattr(kd, function)(**given, **held, denominator=12.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_device_is_waited_for(function):
    given, _ = arguments(function, torch.float32, "cuda")
    numbers = (12.5, torch.tensor(12.5), torch.tensor(12.5, device="cuda"), torch.tensor(12, device="cuda"))
    expected = getattr(kd, function)(**given, denominator=12.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [getattr(kd, function)(**given, denominator=number) for number in numbers]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[0] == losses[1] == losses[2] and losses[3] == expected
