"""dynamic_temperature_kl: the compiled op against the reference twin."""

import itertools
import math
import re

import pytest
import torch
from helpers import FLOATS, assert_accurate, assert_same_formula, double, draw, labels, op_arguments
from student_losses import check, run

import kdkernels as kd
from kdkernels import _names

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
# Degenerate, binary, below a vector, common, common, odd, vocabulary.
CLASSES = (1, 2, 7, 10, 100, 1001, 32000)
ROWS = (0, 1, 3, 64, 257)
SIZES = [(n, c) for n, c in itertools.product(ROWS, CLASSES) if n * c <= 40_000]
MODES, ADJUSTMENTS = ("const", "flsw", "cwsm"), ("none", "ps", "lsr")
# Slopes at which temperatures differ and few of them are clamped.
SLOPES = {"const": 0.0, "flsw": 1.5, "cwsm": 0.3}


def problem(rows=40, classes=11, device="cpu", dtypes=(torch.float32, torch.float32)):
    """Logits, labels of which a third are the teacher's choice, and one that is ignored."""
    student, teacher = (draw(rows, classes, seed=i, dtype=d, device=device) for i, d in enumerate(dtypes))
    target = labels(rows, classes=classes, device=device)
    target[::3] = teacher.argmax(-1)[::3]
    target[1:2] = -100
    return student, teacher, target


def compare(student, *rest, **options):
    """Loss, gradient and temperatures."""
    check(kd.dynamic_temperature_kl, student, *rest, **{"temperature": 4.0, **options})

    def temperature(backend, tensors):
        with kd.backend(backend):
            return (kd.dynamic_temperature_kl(*tensors, return_parts=True, **options)[1]["temperature"],)

    found = temperature(student.device.type, (student, *rest))
    assert_accurate(found, lambda: temperature("reference", [double(tensor) for tensor in (student, *rest)]), ["temperature"])
    return found[0]


@pytest.mark.parametrize("rows, classes", SIZES)
def test_sizes(machine, rows, classes):
    tensors = problem(rows, classes, device=machine)
    for mode, adjust in (("flsw", "ps"), ("cwsm", "lsr")):
        compare(*tensors, mode=mode, adjust=adjust, beta=4 / classes if mode == "cwsm" else 1.0)


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_dtypes(device, dtypes):
    tensors = problem(dtypes=dtypes, device=device)
    for adjust in ADJUSTMENTS:
        temperature = compare(*tensors, adjust=adjust, ce_weight=0.5)
        assert temperature.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)


@pytest.mark.parametrize("mode, adjust", list(itertools.product(MODES, ADJUSTMENTS)))
def test_modes_and_adjustments(machine, mode, adjust):
    tensors = problem(device=machine)
    mask = labels(40, classes=3, seed=1, device=machine) > 0
    weight = draw(40, seed=2, device=machine).abs()
    shared = dict(mode=mode, adjust=adjust, beta=SLOPES[mode])
    for options in (
        dict(),
        dict(ce_weight=0.3, reduction="none"),
        dict(ce_weight=0.3, mask=mask, row_weight=weight, reduction="elementmean"),
        dict(scale_by_t2=False, gamma=0.5, smoothing=0.3, mask=mask),
        dict(normalize="l1", beta=20.0, temperature=6.0, smoothing=0.0),
        dict(t_min=4.0, gamma=2.0, row_weight=weight, reduction="sum"),
        dict(t_min=None, ce_weight=1.0, reduction="mean", ignore_index=3),
    ):
        target = torch.where(tensors[2] == -100, options.get("ignore_index", -100), tensors[2])
        compare(*tensors[:2], target, **{**shared, **options})


@pytest.mark.parametrize("layout", ["dim=1", "dim=0", "channels_last", "every other"])
def test_layouts(machine, layout):
    student, teacher = draw(2, 10, 4, 6, device=machine), draw(2, 10, 4, 6, seed=1, device=machine)
    dim = 0 if layout == "dim=0" else 1
    if layout == "channels_last":
        student = student.to(memory_format=torch.channels_last)
    if layout == "every other":
        student = draw(2, 20, 4, 12, device=machine)[:, ::2, :, ::2]
    target = labels(*student.sum(dim).shape, classes=student.shape[dim], device=machine)
    for mode, adjust in (("flsw", "ps"), ("cwsm", "lsr")):
        options = dict(mode=mode, adjust=adjust, beta=0.3, dim=dim)
        compare(student, teacher, target, **options)
        compare(student, teacher, target, reduction="none", mask=target != 1, **options)


def test_parts(machine):
    tensors = problem(device=machine, dtypes=(torch.float64,) * 2)
    for reduction, ce_weight, adjust in itertools.product(("batchmean", "none"), (0.0, 0.5), ADJUSTMENTS):
        options = dict(reduction=reduction, ce_weight=ce_weight, adjust=adjust, return_parts=True)
        with kd.backend(machine):
            loss, parts = kd.dynamic_temperature_kl(*tensors, **options)
        with kd.backend("reference"):
            expected = kd.dynamic_temperature_kl(*tensors, **options)
        assert_same_formula((loss, parts), expected)
        assert_same_formula(loss, parts["kl"] + ce_weight * parts["ce"])
        assert not any(part.requires_grad for part in parts.values())


def test_hidden_rows_are_harmless(machine):
    student, teacher, target = problem(device=machine)
    mask = labels(40, classes=3, seed=1, device=machine) > 0
    student[~mask], teacher[~mask] = nan, inf
    for mode, adjust in itertools.product(MODES, ADJUSTMENTS):
        options = dict(mode=mode, adjust=adjust, beta=SLOPES[mode], mask=mask)
        temperature = compare(student, teacher, target, **options)
        assert (temperature[~mask] == 4).all() and temperature.isfinite().all()
    none = torch.zeros_like(mask)
    loss, grad = run(machine, kd.dynamic_temperature_kl, student, teacher, target, mask=none)
    assert loss == 0 and (grad == 0).all()


def test_equivalences(machine):
    """Beta 0 is softened_kl, a teacher that is always right is not adjusted, equal logits have no loss."""
    student, teacher, _ = problem(device=machine, dtypes=(torch.float64,) * 2)
    target = teacher.argmax(-1)
    expected = run(machine, lambda s: kd.softened_kl(s, teacher, temperature=4.0), student)
    for mode, adjust in itertools.product(MODES, ADJUSTMENTS):
        options = dict(mode=mode, adjust=adjust)
        ours = run(machine, kd.dynamic_temperature_kl, student, teacher, target, beta=0.0, **options)
        assert_same_formula(ours, expected)
        loss, grad = run(machine, kd.dynamic_temperature_kl, teacher, teacher, target, **options)
        assert loss == 0 and (grad == 0).all()


def test_temperatures_that_are_not_positive(machine):
    student, teacher, target = problem(device=machine)
    options = dict(mode="cwsm", beta=8.0, reduction="none")
    loss, grad = run(machine, kd.dynamic_temperature_kl, student, teacher, target, t_min=None, **options)
    free = compare(student, teacher, target, t_min=None, **options)
    assert free.min() < 0
    assert torch.equal(loss.isnan(), free <= 0) and torch.equal(grad.isnan().all(-1), free <= 0)
    assert compare(student, teacher, target, t_min=0.5, **options).min() == 0.5


def test_ties_and_impossible_classes(machine):
    student, teacher, target = problem(device=machine)
    teacher = teacher.round().clamp(-1, 2)  # many equal maxima
    for mode, adjust in itertools.product(MODES, ADJUSTMENTS):
        compare(student, teacher, target, mode=mode, adjust=adjust, beta=SLOPES[mode])
    absent = torch.zeros_like(student, dtype=torch.bool)
    absent[5, target[5] - 1] = absent[7, target[7]] = True
    teacher = teacher.masked_fill(absent, -inf)
    for adjust in ADJUSTMENTS:
        compare(student, teacher, target, mode="cwsm", adjust=adjust, beta=0.3)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
def test_row_weights_that_are_learned(device, reduction):
    mask = labels(40, classes=2, device=device) > 0
    for ce_weight in (0.0, 0.5):
        results = []
        for backend in (device, "reference"):
            student, teacher, target = problem(device=device, dtypes=(torch.float64,) * 2)
            weight = draw(40, seed=2, dtype=torch.float64, device=device).masked_fill(~mask, nan)
            inputs = (student.requires_grad_(), weight.requires_grad_())
            with kd.backend(backend):
                loss, parts = kd.dynamic_temperature_kl(
                    student,
                    teacher,
                    target,
                    adjust="ps",
                    mask=mask,
                    row_weight=weight,
                    ce_weight=ce_weight,
                    reduction=reduction,
                    return_parts=True,
                )
                results.append((loss, parts, torch.autograd.grad(loss.sum(), inputs)))
        assert_same_formula(*results)


# As a citizen of PyTorch

CHOICES = {
    "flsw-ps": dict(mode="flsw", adjust="ps", ce_weight=0.5),
    "cwsm-lsr": dict(mode="cwsm", adjust="lsr", beta=0.3, normalize="l1", reduction="none"),
    "const-none": dict(mode="const"),
}


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("name", CHOICES)
def test_compile(device, backend, name):
    backend = device if backend == "library" else backend

    def loss(student, teacher, target):
        total, parts = kd.dynamic_temperature_kl(student, teacher, target, return_parts=True, **CHOICES[name])
        return 2 * total.sum() + parts["temperature"].mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for rows in (8, 12):
        tensors = problem(rows, device=device, dtypes=(torch.float64,) * 2)
        assert_same_formula(run(backend, compiled, *tensors), run(backend, loss, *tensors))


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_gradcheck(device, adjust):
    """At temperatures that stand still: a finite difference sees the others move."""
    _, teacher, target = problem(4, 3, device=device, dtypes=(torch.float64,) * 2)
    student = draw(4, 3, scale=1.0, dtype=torch.float64, device=device).requires_grad_()

    def loss(student):
        options = dict(mode="const", adjust=adjust, ce_weight=0.5, reduction="none")
        return kd.dynamic_temperature_kl(student, teacher, target, **options)

    with kd.backend(device):
        assert torch.autograd.gradcheck(loss, student)
        assert torch.autograd.gradgradcheck(loss, student)


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("name", CHOICES)
def test_func_derivatives(device, name):
    student, teacher, target = problem(8, device=device, dtypes=(torch.float64,) * 2)

    def scalar(student):
        return (kd.dynamic_temperature_kl(student, teacher, target, **CHOICES[name]) ** 2).sum()

    first = torch.func.grad(scalar)
    both(device, first, student)
    both(device, torch.func.grad(lambda s: (first(s) ** 2).sum()), student)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (-1, 1, 1)], ids=str)
def test_vmap(device, in_dims, reduction):
    """The mean of the weights is that of each problem."""

    def stacked(tensors, at):
        return tensors[0] if at is None else torch.stack(tensors, at)

    drawn = [draw(6, 5, seed=seed, dtype=torch.float64, device=device) for seed in range(6)]
    target = [labels(6, classes=5, seed=seed, device=device) for seed in range(3)]
    tensors = [stacked(each, at) for each, at in zip((drawn[:3], drawn[3:], target), in_dims)]
    mask = labels(6, classes=3, device=device) > 0
    for choice in CHOICES.values():
        options = {**choice, "reduction": reduction, "mask": mask}

        def loss_and_temperatures(*tensors, options=options):
            loss, parts = kd.dynamic_temperature_kl(*tensors, return_parts=True, **options)
            return loss, parts["temperature"]

        def square(*tensors, options=options):
            return (kd.dynamic_temperature_kl(*tensors, **options) ** 2).sum()

        both(device, torch.vmap(loss_and_temperatures, in_dims), *tensors)
        both(device, torch.vmap(torch.func.grad(square), in_dims), *tensors)


@pytest.mark.parametrize("reduction", [0, 2])
@pytest.mark.parametrize("mode, adjust", [("const", "lsr"), ("flsw", "ps"), ("cwsm", "none")])
def test_opcheck(device, mode, adjust, reduction):
    op = torch.ops.kdkernels.dynamic_temperature_kl.default
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        student, teacher, target = problem(8, device=device, dtypes=(dtype, torch.float32))
        arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
        ones = torch.ones(8, dtype=arithmetic, device=device)
        for row_temperature in (None, 3 * ones):
            for return_parts in (True, False):
                given = op_arguments(
                    op,
                    student=student.requires_grad_(),
                    teacher=teacher,
                    target=target,
                    mask=target > 3,
                    row_weight=ones,
                    row_temperature=row_temperature,
                    temperature=4.0,
                    beta=0.5,
                    gamma=1.0,
                    mode=_names.TEMPERATURE_MODES[mode],
                    adjust=_names.ADJUSTMENTS[adjust],
                    smoothing=0.1,
                    t_min=1.0,
                    scale_by_t2=True,
                    ce_weight=0.5,
                    return_parts=return_parts,
                    ignore_index=-100,
                    reduction=reduction,
                    dim=1,
                    grad_student=True,
                )
                torch.library.opcheck(op, given)
        numbers = (_names.STATISTICS["flsw"], 0.5, _names.ADJUSTMENTS[adjust], -100, 1)
        torch.library.opcheck(
            torch.ops.kdkernels.row_statistics.default, (student.detach(), teacher, target, *numbers)
        )


# Errors


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


def call(student=None, teacher=None, target=None, **options):
    student = torch.zeros(2, 3) if student is None else student
    teacher = torch.zeros(2, 3) if teacher is None else teacher
    target = torch.zeros(2, dtype=torch.int64) if target is None else target
    return kd.dynamic_temperature_kl(student, teacher, target, **options)


NAME = "dynamic_temperature_kl"


def test_tensors_that_are_refused(backend):
    assert call() == 0
    rule = f"{NAME}: student [2, 3] and teacher [2, 4] must have equal shapes"
    with refuses(ValueError, rule + "; use shared_classes=n where the first n classes of both are the same"):
        call(teacher=torch.zeros(2, 4))
    with refuses(
        TypeError,
        f"{NAME}: target must hold integer class labels, got float32; "
        'probabilities of classes are for soft_cross_entropy(student, target, teacher_kind="probs")',
    ):
        call(target=torch.zeros(2, 3))
    for bad in (3, -1):
        for adjust in ADJUSTMENTS:
            with refuses(
                ValueError, f"{NAME}: target contains {bad}, valid labels are 0..2 (or ignore_index=-100)"
            ):
                call(target=torch.tensor([0, bad]), adjust=adjust)
    with refuses(TypeError, f"{NAME}: mask must be bool, got float32; convert it with mask.bool()"):
        call(mask=torch.ones(2))
    with refuses(TypeError, f"{NAME}: row_weight must be a torch.Tensor, got float"):
        call(row_weight=1.0)
    with refuses(TypeError, f"{NAME}: group must be a torch.distributed.ProcessGroup, got int"):
        call(group=2)


@pytest.mark.parametrize("name", ["temperature", "t_min"])
def test_positive_numbers(backend, name):
    for value in (0, -1.0, inf, nan):
        with refuses(ValueError, f"{NAME}: {name} must be finite and > 0, got {value}"):
            call(**{name: value})


def test_numbers_that_are_tensors(backend):
    with refuses(ValueError, f"{NAME}: temperature must be a number or a tensor of shape [] or [1], got [2]"):
        call(temperature=torch.ones(2))
    with refuses(TypeError, f"{NAME}: t_min must be a number, got Tensor; use t_min.item()"):
        call(t_min=torch.tensor(4.0))


@pytest.mark.parametrize("name", ["beta", "gamma", "ce_weight"])
def test_numbers_that_are_not_negative(backend, name):
    for value in (-1.0, inf, nan):
        with refuses(ValueError, f"{NAME}: {name} must be finite and >= 0, got {value}"):
            call(**{name: value})


def test_options_that_are_refused(backend):
    with refuses(ValueError, f"{NAME}: smoothing must be in [0, 1], got 1.5"):
        call(smoothing=1.5)
    for name, value, allowed in (
        ("mode", "focal", "'const', 'flsw', 'cwsm'"),
        ("adjust", None, "'none', 'ps', 'lsr'"),
        ("normalize", "l2", "None, 'l1'"),
        ("reduction", "max", "'none', 'sum', 'batchmean', 'mean', 'elementmean'"),
    ):
        with refuses(ValueError, f"{NAME}: {name} must be one of {allowed}, got {value!r}"):
            call(**{name: value})
