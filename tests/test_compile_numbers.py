"""Two compiled graphs serve all values of all numbers of a loss, and all sizes of a batch: a ramp is not compiled anew at
every step."""

import copy
import inspect

import numpy as np
import pytest
import torch
from helpers import assert_same_formula, draw, labels, op_arguments
from test_nn import PAIRS, arguments
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves, tree_map

import kdkernels as kd

STEPS = 12  # more than the graphs that torch.compile makes before it gives up, 8
RAMPS = {
    "temperature": (1.5, 4.0),
    "student_temperature": (0.5, 2.0),
    "correct_prob": (0.1, 0.9),  # from below 1 / C to above
    "ce_weight": (0.2, 2.0),
    "kl_weight": (2.0, 0.2),
    "beta": (0.1, 0.8),
    "skew": (0.1, 0.8),
    "gamma": (0.5, 1.5),
    "t_min": (0.5, 3.0),
    "smoothing": (0.5, 0.05),
    "label_smoothing": (0.0, 0.3),
    "target_eps": (0.01, 0.1),
    "eps": (1e-3, 1e-2),
    "normalizer": (10.0, 30.0),
    "weights": ([0.2, 2.0], [1.5, 0.5]),
    "ratio": (0.1, 0.9),
    "denominator": (3.0, 70.0),
    "threshold": (0.1, 0.9),
}


def numbers(function):
    """Names of the options that may be floats."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if "float" in str(each.annotation)]


def ramped(module):
    """Its tensors and options, and the reduction that knows all numbers."""
    given, options = arguments(module)
    if "denominator" in numbers(PAIRS[module]):
        given["denominator"] = 1.0
        if "reduction" in options:
            options["reduction"] = "mean"
    return given, options


def ramps(names):
    """All these numbers at each step."""
    ends = {name: RAMPS.get(name, (0.2, 2.0)) for name in names}
    for step in range(STEPS):
        share = step / (STEPS - 1)
        yield {name: between(first, last, share) for name, (first, last) in ends.items()}


def between(first, last, share):
    if isinstance(first, list):
        return [between(*ends, share) for ends in zip(first, last)]
    return (1 - share) * first + share * last


def leaf(value):
    """It requires grad, if it is a float tensor."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if is_float else value


def result(function, **given):
    """What it returns, flat, and the gradients of its first output."""
    constant = ("row_weight", "bank", "teachers")
    learned = {name: tree_map(leaf, value) for name, value in given.items() if name not in constant}
    leaves = [each for each in tree_leaves(learned) if isinstance(each, torch.Tensor) and each.requires_grad]
    found = function(**{**given, **learned})
    loss, *others = found if isinstance(found, tuple) else (found,)
    if not loss.requires_grad:
        return loss, others
    return loss, others, torch.autograd.grad(loss.sum(), leaves, allow_unused=True)


def gradient_of_gradients(loss, leaf):
    """Of the sum of the squares of the loss's gradient."""
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), leaf)[0]


WITH_NUMBERS = {module: function for module, function in PAIRS.items() if numbers(function)}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("module", WITH_NUMBERS)
def test_attributes_of_a_module(module):
    function, (given, options) = PAIRS[module], ramped(module)
    loss, counter = module(**options), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in ramps(numbers(function)):
        for name, value in step.items():
            if name in given:
                given[name] = value
            else:
                setattr(loss, name, value)
        assert_same_formula(result(compiled, **given), result(function, **{**options, **given, **step}))
    assert counter.frame_count == 2


@pytest.mark.parametrize("function", WITH_NUMBERS.values())
def test_arguments_of_a_function(function):
    module = next(module for module in PAIRS if PAIRS[module] is function)
    given, options = ramped(module)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for step in ramps(numbers(function)):
        step = {**given, **options, **step}
        assert_same_formula(result(compiled, **step), result(function, **step))
    assert counter.frame_count == 2


@pytest.mark.parametrize("kind", [int, np.float32])
def test_attributes_of_other_types(kind):
    loss, counter = kd.nn.KDLoss(temperature=kind(1)), CompileCounterWithBackend("eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64) for seed in (0, 1))
    given = dict(student=student, teacher=teacher, target=labels(8, classes=10))
    for temperature in range(1, 1 + STEPS):
        loss.temperature = kind(temperature)
        assert_same_formula(result(compiled, **given), result(kd.kd_loss, **given, temperature=temperature))
    assert counter.frame_count == 2


def test_attributes_of_a_module_with_memory():
    torch.manual_seed(0)
    crd = kd.nn.CRDLoss(5, 6, 20, embed_dim=4, negatives=7)
    twin = copy.deepcopy(crd)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(crd, fullgraph=True, backend=counter)
    for step in range(STEPS):
        batch = (draw(4, 5, seed=step), draw(4, 6, seed=step + STEPS), torch.arange(4), labels(4, 8, classes=20, seed=step))
        losses = []
        for module, function in ((crd, compiled), (twin, twin)):
            module.temperature, module.momentum, module.eps = 0.1 + 0.02 * step, 0.9 - 0.05 * step, 1e-4 * (step + 1)
            loss = function(*batch)
            losses.append((loss.detach(), torch.autograd.grad(loss, list(module.parameters()))))
        # In float32 the graph may round otherwise; a number of an earlier step would be wrong in the second digit.
        torch.testing.assert_close((losses[0], crd.state_dict()), (losses[1], twin.state_dict()), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2


# The reference specialises elsewhere than the ops: where it makes tensors of numbers, and takes powers and logarithms.
OF_REFERENCE = {
    "virtual_teacher_loss": {},
    "label_smoothing_loss": {},
    "dynamic_temperature_kl": {"mode": "flsw", "adjust": "lsr"},
    "memory_bank_nce": {},
}


@pytest.mark.parametrize("name", OF_REFERENCE)
def test_reference(name):
    function = getattr(kd, name)
    given, options = ramped(next(module for module in PAIRS if PAIRS[module] is function))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    with kd.backend("reference"):
        for step in ramps(numbers(function)):
            step = {**given, **options, **OF_REFERENCE[name], **step}
            assert_same_formula(result(compiled, **step), result(function, **step))
    assert counter.frame_count == 2


def test_whole_numbers_and_weights_that_reach_0():
    student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64) for seed in (0, 1))
    given = dict(student=student, teacher=teacher, target=labels(8, classes=10))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(kd.kd_loss, fullgraph=True, backend=counter)
    for step in range(STEPS):
        options = dict(temperature=2 + step, kl_weight=abs(step - 4) / 4, ce_weight=abs(step - 6) / 2)
        assert_same_formula(result(compiled, **given, **options), result(kd.kd_loss, **given, **options))
    assert counter.frame_count == 2


@pytest.mark.parametrize("module", [kd.nn.KDLoss, kd.nn.InfoNCE, kd.nn.MemoryBankNCE, kd.nn.OKDDipLoss, kd.nn.PeerAttention])
def test_batches_of_other_sizes(module):
    function, (given, options) = PAIRS[module], arguments(module)
    rows = len(next(iter(given.values())))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for size in range(2, 2 + STEPS):
        batch = {
            name: torch.cat([value] * STEPS)[:size] if torch.is_tensor(value) and len(value) == rows else value
            for name, value in given.items()
        }
        assert_same_formula(result(compiled, **batch, **options), result(function, **batch, **options))
    assert counter.frame_count == 2


@pytest.mark.parametrize("convention", ["paper", "others"])
def test_numbers_of_classes(convention):
    """The shares of the classes follow from their number, and must not tie the graph to it."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(kd.label_smoothing_loss, fullgraph=True, backend=counter)
    for classes in range(4, 4 + STEPS):
        given = dict(student=draw(8, classes, dtype=torch.float64), target=labels(8, classes=classes), convention=convention)
        assert_same_formula(result(compiled, **given), result(kd.label_smoothing_loss, **given))
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, number: kd.softened_kl(logits[0], logits[1], temperature=number, divergence="jsd", beta=number / 5),
        lambda logits, number: kd.mean_probabilities(logits, temperature=number).square().sum(),
    ],
    ids=["softened_kl", "mean_probabilities"],
)
def test_second_derivatives(loss):
    logits = draw(2, 3, 5, dtype=torch.float64).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")  # the others have none
    for number in (1.5, 2.0, 2.5):
        ours, expected = (gradient_of_gradients(function(logits, number), logits) for function in (compiled, loss))
        assert_same_formula(ours, expected)


@pytest.mark.parametrize(
    "transformed",
    [
        lambda x, T: torch.func.grad(lambda logits: kd.softened_kl(logits, x, temperature=T))(x.flip(0)),
        lambda x, T: torch.func.jacrev(lambda query: kd.info_nce(query, x, temperature=T, reduction="none"))(x.flip(0)),
        lambda x, T: torch.vmap(lambda row: kd.softened_kl(row, row.flip(0), temperature=T))(x),
        lambda x, T: torch.vmap(torch.func.grad(lambda row: kd.softened_kl(row, x[0], temperature=T)))(x),
    ],
    ids=["grad", "jacrev", "vmap", "vmap of grad"],
)
def test_transforms_inside_a_graph(transformed):
    logits, counter = draw(4, 5, dtype=torch.float64), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(transformed, fullgraph=True, backend=counter)
    for temperature in (0.5, 1.5, 2.5, 3.5):
        assert_same_formula(compiled(logits, temperature), transformed(logits, temperature))
    assert counter.frame_count == 2


def scalars(*numbers):
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


def test_overloads_of_the_ops():
    student, teacher = (draw(4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    peers = draw(2, 4, 3, 5, dtype=torch.float64)
    temperature, beta, eps, kl_weight, ce_weight, smoothing = scalars(2.0, 0.3, 0.0, 1.0, 0.0, 0.0)
    op = torch.ops.kdkernels.softened_kl.open
    given = dict(student=student, teacher=teacher, temperature=temperature, beta=beta, skew=eps, target_eps=eps)
    weights = dict(kl_weight=kl_weight, ce_weight=ce_weight, label_smoothing=smoothing)
    options = dict(divergence=2, scale_by_t2=True, reduction=2, dim=1, grad_student=True, grad_teacher=True)
    torch.library.opcheck(op, op_arguments(op, **given, **weights, **options))

    mixture = torch.ops.kdkernels.peer_mixture.open
    torch.library.opcheck(mixture, (peers[0].requires_grad_(), None, None, temperature, 1))
    ours = torch.vmap(lambda each: mixture(each, None, None, temperature, 1)[0])(peers)
    assert_same_formula(ours.squeeze(2), kd.mean_probabilities(peers.flatten(0, 1), temperature=2.0).view(2, 4, 5))
