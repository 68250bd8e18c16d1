"""virtual_teacher_loss, label_smoothing_loss and cwtm_loss: the compiled op against the reference twins."""

import itertools
import math
import re

import pytest
import torch
from helpers import FLOATS, assert_same_formula, draw, labels, op_arguments
from student_losses import check, run

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
# Degenerate, binary, below a vector, common, common, odd, vocabulary.
CLASSES = (1, 2, 7, 10, 100, 1001, 32000)
ROWS = (0, 1, 3, 64, 257)
SIZES = [(n, c) for n, c in itertools.product(ROWS, CLASSES) if n * c <= 40_000]


def teachers_loss(student, target, teacher, **options):
    return kd.cwtm_loss(student, target, teacher, **options)


def confidence_loss(student, target, confidence, **options):
    return kd.cwtm_loss(student, target, confidence=confidence, **options)


def each_loss(student, target, dim=-1):
    """The functions with the tensors that they take."""
    shape = target.shape
    teacher = draw(*student.shape, seed=8, device=student.device)
    confidence = draw(*shape, seed=9, device=student.device).sigmoid()
    if student.shape[dim] > 1:
        yield kd.virtual_teacher_loss, ()
    yield kd.label_smoothing_loss, ()
    yield teachers_loss, (teacher,)
    yield confidence_loss, (confidence,)


@pytest.mark.parametrize("rows, classes", SIZES)
def test_sizes(machine, rows, classes):
    student, target = draw(rows, classes, device=machine), labels(rows, classes=classes, device=machine)
    for function, rest in each_loss(student, target):
        loss, _ = check(function, student, target, *rest)
        assert rows or loss == 0


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_dtypes(device, dtypes):
    student, teacher = (draw(33, 100, seed=i, dtype=dtype, device=device) for i, dtype in enumerate(dtypes))
    target = labels(33, classes=100, device=device)
    loss, grad = check(teachers_loss, student, target, teacher)
    assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    assert grad.dtype == dtypes[0]
    loss, _ = check(confidence_loss, student, target, teacher[:, 0].sigmoid())
    assert loss.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    for function in (kd.virtual_teacher_loss, kd.label_smoothing_loss):
        check(function, student, target)


@pytest.mark.parametrize("layout", ["dim=1", "dim=0", "channels_last", "every other"])
def test_layouts(machine, layout):
    student = draw(2, 10, 4, 6, device=machine)
    dim = 0 if layout == "dim=0" else 1
    if layout == "channels_last":
        student = student.to(memory_format=torch.channels_last)
    if layout == "every other":
        student = draw(2, 20, 4, 12, device=machine)[:, ::2, :, ::2]
    target = labels(*student.sum(dim).shape, classes=student.shape[dim], device=machine)
    target[0, 0] = -100
    for function, rest in each_loss(student, target, dim):
        for reduction in ("none", "batchmean"):
            check(function, student, target, *rest, dim=dim, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 7, 1000])
def test_reductions_and_ignored_rows(machine, ignore_index, reduction):
    student, target = draw(40, 11, device=machine), labels(40, classes=11, device=machine)
    target[::4] = ignore_index
    options = dict(ignore_index=ignore_index, reduction=reduction)
    student[4] = nan
    for function, rest in each_loss(student, target):
        if rest:
            rest[0][4] = nan
        check(function, student, target, *rest, **options)
        loss, grad = check(function, student, torch.full_like(target, ignore_index), *rest, **options)
        assert (loss == 0).all() and (grad == 0).all()


def test_virtual_teacher_options(machine):
    student, target = draw(40, 11, dtype=torch.float64, device=machine), labels(40, classes=11, device=machine)
    target[::5] = -100
    weights = itertools.cycle(((1.0, 1.0), (0.05, 0.95), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)))
    reductions = itertools.cycle(("batchmean", "none", "elementmean"))
    choices = itertools.product((0.9, 0.0, 1.0), (20.0, 0.1), (1.0, 4.0))
    for correct_prob, temperature, student_temperature in choices:
        ce_weight, kl_weight = next(weights)
        options = dict(
            correct_prob=correct_prob,
            temperature=temperature,
            student_temperature=student_temperature,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            reduction=next(reductions),
        )
        check(kd.virtual_teacher_loss, student.float(), target, **options)
        with kd.backend(machine):
            ours = kd.virtual_teacher_loss(student, target, return_parts=True, **options)
        with kd.backend("reference"):
            expected = kd.virtual_teacher_loss(student, target, return_parts=True, **options)
        assert_same_formula(ours, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("convention", ["paper", "others"])
def test_label_smoothing_options(machine, convention, smoothing):
    student, target = draw(40, 11, device=machine), labels(40, classes=11, device=machine)
    options = dict(smoothing=smoothing, convention=convention)
    check(kd.label_smoothing_loss, student, target, **options)
    student[0, target[0]] = -inf
    if convention == "paper":
        check(kd.label_smoothing_loss, student, target, **options)


@pytest.mark.parametrize("normalize", [True, False])
def test_cwtm_options(machine, normalize):
    student, target = draw(40, 11, device=machine), labels(40, classes=11, device=machine)
    teacher = draw(40, 11, seed=1, device=machine)
    for reduction in ("none", "sum", "batchmean", "elementmean"):
        options = dict(normalize=normalize, reduction=reduction)
        check(teachers_loss, student, target, teacher, **options)
        check(confidence_loss, student, target, teacher.softmax(-1).amax(-1), **options)
        tensors = student.double(), target, teacher.double()
        ours = run(machine, confidence_loss, *tensors[:2], tensors[2].softmax(-1).amax(-1), **options)
        assert_same_formula(ours, run(machine, teachers_loss, *tensors, **options))
    loss, grad = check(confidence_loss, student, target, torch.zeros(40, device=machine), normalize=normalize)
    assert loss == 0 and (grad == 0).all()


def test_extreme_logits(machine):
    student, target = draw(8, 37, scale=1e4, device=machine), labels(8, classes=37, device=machine)
    student[2, 3] = -inf
    for function, rest in each_loss(student, target):
        check(function, student, target, *rest, reduction="none")
    for bad in (nan, inf, -inf):
        student[5] = bad
        for function, rest in each_loss(student, target):
            loss, grad = check(function, student, target, *rest, reduction="none")
            assert loss[5].isnan() and grad[5].isnan().all() and not loss[4].isnan()


# As a citizen of PyTorch


def losses(device, shape=(8, 10)):
    target = labels(*shape[:-1], classes=shape[-1], device=device)
    target[0] = -100
    return {
        function.__name__: lambda s, f=function, rest=rest: f(s, target, *rest)
        for function, rest in each_loss(draw(*shape, device=device), target)
    }


NAMES = tuple(losses("cpu"))


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_compile(device, backend, name):
    function = losses(device)[name]
    backend = device if backend == "library" else backend
    compiled = torch.compile(lambda s: 2 * function(s), fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        student = draw(8, 10, seed=seed, dtype=torch.float64, device=device)
        expected = run(backend, lambda s: 2 * function(s), student)
        assert_same_formula(run(backend, compiled, student), expected)


def test_compile_with_annealed_temperature(device):
    compiled = torch.compile(kd.virtual_teacher_loss, fullgraph=True, backend="aot_eager")
    student, target = draw(8, 10, dtype=torch.float64, device=device), labels(8, classes=10, device=device)
    for temperature in (20.0, 10.0, 5.0):
        options = dict(temperature=temperature, student_temperature=temperature)
        ours = run(device, compiled, student, target, **options)
        assert_same_formula(ours, run(device, kd.virtual_teacher_loss, student, target, **options))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(device, name):
    student = draw(4, 3, scale=1.0, dtype=torch.float64, device=device).requires_grad_()
    function = losses(device, (4, 3))[name]
    with kd.backend(device):
        assert torch.autograd.gradcheck(function, student)
        assert torch.autograd.gradgradcheck(function, student)


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (-1, 1)], ids=str)
def test_vmap(device, in_dims, reduction):
    def stacked(tensors, at):
        return tensors[0] if at is None else torch.stack(tensors, at)

    logits = [draw(6, 5, seed=seed, dtype=torch.float64, device=device) for seed in range(3)]
    target = [labels(6, classes=5, seed=seed, device=device) for seed in range(3)]
    tensors = (stacked(logits, in_dims[0]), stacked(target, in_dims[1]))
    teacher = draw(6, 5, seed=7, dtype=torch.float64, device=device)  # the same for all
    for function in (
        lambda s, y: kd.virtual_teacher_loss(s, y, ignore_index=2, reduction=reduction),
        lambda s, y: kd.label_smoothing_loss(s, y, ignore_index=2, reduction=reduction),
        lambda s, y: kd.cwtm_loss(s, y, teacher, ignore_index=2, reduction=reduction),
        lambda s, y: kd.cwtm_loss(s, y, confidence=teacher[:, 0].sigmoid(), reduction=reduction),
    ):
        both(device, torch.vmap(function, in_dims), *tensors)
        square = lambda s, y, f=function: (f(s, y) ** 2).sum()  # noqa: E731
        both(device, torch.vmap(torch.func.grad(square), in_dims), *tensors)


@pytest.mark.parametrize("reduction", [0, 2])
def test_opcheck(device, reduction):
    op = torch.ops.kdkernels.label_loss.default
    target = labels(4, 6, classes=5, device=device)
    for dtype, rows in ((torch.float32, 4), (torch.float64, 4), (torch.bfloat16, 0)):
        student = draw(rows, 6, 5, dtype=dtype, device=device).requires_grad_()
        arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
        for teacher, confidence in (
            (None, None),
            (student.detach().flip(0), None),
            (None, torch.ones(rows, 6, dtype=arithmetic, device=device)),
        ):
            given = op_arguments(
                op,
                student=student,
                target=target[:rows],
                teacher=teacher,
                confidence=confidence,
                on=0.6,
                off=0.1,
                relative=True,
                temperature=2.0,
                kl_weight=0.7,
                ce_weight=0.3,
                normalize=True,
                transforms=1,
                return_parts=teacher is None,
                ignore_index=-100,
                reduction=reduction,
                dim=2,
                grad_student=True,
            )
            torch.library.opcheck(op, given)


def test_autocast(device):
    student, target = draw(8, 10, dtype=torch.bfloat16, device=device), labels(8, classes=10, device=device)
    expected = run(device, kd.virtual_teacher_loss, student, target)
    with torch.autocast(device, torch.bfloat16):
        ours = run(device, kd.virtual_teacher_loss, student, target)
    assert ours[0].dtype is torch.float32 and all(torch.equal(a, b) for a, b in zip(ours, expected))


# Errors


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


FUNCTIONS = ("virtual_teacher_loss", "label_smoothing_loss", "cwtm_loss")
STUDENT, TARGET = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


def call(function, student=STUDENT, target=TARGET, **options):
    if function == "cwtm_loss" and not options.keys() & {"teacher", "confidence"}:
        options["teacher"] = student
    return getattr(kd, function)(student, target, **options)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_tensors_that_are_refused(backend, function):
    with refuses(TypeError, f"{function}: student must be a torch.Tensor, got list"):
        call(function, student=[[0.0, 1.0, 2.0]])
    with refuses(
        TypeError,
        f"{function}: student must be float32, float16, bfloat16 or float64, got int64; "
        "convert it with student.float()",
    ):
        call(function, student=torch.zeros(2, 3, dtype=torch.int64))
    with refuses(ValueError, f"{function}: dim must be in -2..1 for logits [2, 3], got 2"):
        call(function, dim=2)
    with refuses(
        TypeError,
        f"{function}: target must hold integer class labels, got float32; "
        'probabilities of classes are for soft_cross_entropy(student, target, teacher_kind="probs")',
    ):
        call(function, target=STUDENT)
    with refuses(
        ValueError,
        f"{function}: target must have one value per row, [2] for logits [2, 3] with dim=1, got [3]",
    ):
        call(function, target=torch.zeros(3, dtype=torch.int64))
    for bad in (3, -1):
        with refuses(
            ValueError, f"{function}: target contains {bad}, valid labels are 0..2 (or ignore_index=-100)"
        ):
            call(function, target=torch.tensor([0, bad]))
    with refuses(TypeError, f"{function}: ignore_index must be an int, got NoneType"):
        call(function, ignore_index=None)
    with refuses(
        ValueError,
        f"{function}: reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got 'max'",
    ):
        call(function, reduction="max")


@pytest.mark.parametrize("name", ["correct_prob", "smoothing"])
def test_probabilities_that_are_refused(backend, name):
    function = FUNCTIONS[name == "smoothing"]
    for value in (-0.1, 1.1, nan):
        with refuses(ValueError, f"{function}: {name} must be in [0, 1], got {value}"):
            call(function, **{name: value})
    with refuses(TypeError, f"{function}: {name} must be a number, got Tensor; use {name}.item()"):
        call(function, **{name: torch.tensor(0.5)})


def test_numbers_that_are_refused(backend):
    for name in ("temperature", "student_temperature"):
        for value in (0, -1.0, inf, nan):
            with refuses(ValueError, f"virtual_teacher_loss: {name} must be finite and > 0, got {value}"):
                call("virtual_teacher_loss", **{name: value})
    for name in ("ce_weight", "kl_weight"):
        with refuses(ValueError, f"virtual_teacher_loss: {name} must be finite and >= 0, got -1"):
            call("virtual_teacher_loss", **{name: -1})
    with refuses(
        ValueError, "label_smoothing_loss: convention must be one of 'paper', 'others', got 'torch'"
    ):
        call("label_smoothing_loss", convention="torch")


def test_one_class_is_refused(backend):
    student = torch.zeros(2, 1)
    rule = "at least 2 classes are needed, got logits [2, 1] with dim=1"
    with refuses(ValueError, f"virtual_teacher_loss: {rule}"):
        call("virtual_teacher_loss", student=student)
    with refuses(ValueError, f"label_smoothing_loss: {rule}"):
        call("label_smoothing_loss", student=student, convention="others")
    assert call("label_smoothing_loss", student=student, convention="others", smoothing=0.0) == 0
    assert call("label_smoothing_loss", student=student) == 0


def test_teachers_and_confidences_that_are_refused(backend):
    with refuses(ValueError, "cwtm_loss: one of teacher and confidence must be given, got neither"):
        kd.cwtm_loss(STUDENT, TARGET)
    with refuses(ValueError, "cwtm_loss: one of teacher and confidence must be given, got both"):
        call("cwtm_loss", teacher=STUDENT, confidence=torch.ones(2))
    rule = "cwtm_loss: student [2, 3] and teacher [2, 4] must have equal shapes"
    with refuses(ValueError, rule + "; use shared_classes=n where the first n classes of both are the same"):
        call("cwtm_loss", teacher=torch.zeros(2, 4))
    with refuses(TypeError, "cwtm_loss: confidence must be a torch.Tensor, got float"):
        call("cwtm_loss", confidence=0.9)
    with refuses(
        ValueError,
        "cwtm_loss: confidence must have one value per row, [2] for logits [2, 3] with dim=1, got [2, 1]",
    ):
        call("cwtm_loss", confidence=torch.ones(2, 1))
    for value in (-0.5, 1.5, nan):
        with refuses(ValueError, f"cwtm_loss: confidence must be in [0, 1] in every row, got {value}"):
            call("cwtm_loss", confidence=torch.tensor([1.0, value]))
    ignored = torch.tensor([0, -100])
    assert call("cwtm_loss", target=ignored, confidence=torch.tensor([1.0, nan])).isfinite()
    with refuses(TypeError, "cwtm_loss: group must be a torch.distributed.ProcessGroup, got int"):
        call("cwtm_loss", group=2)


@pytest.mark.parametrize("normalize", [True, False])
def test_confidence_in_any_memory_order(device, normalize):
    student, target = draw(3, 4, 7, device=device), labels(3, 4, classes=7, device=device)
    confidence = draw(3, 4, device=device).sigmoid()
    strided = confidence.t().contiguous().t()
    before = strided.clone()
    plain = kd.cwtm_loss(student, target, confidence=confidence, normalize=normalize, reduction="none")
    other = kd.cwtm_loss(student, target, confidence=strided, normalize=normalize, reduction="none")
    assert torch.equal(plain, other)
    assert torch.equal(strided, before)


def test_the_former_name_of_normalize(backend):
    confidence = torch.tensor([0.2, 0.9])
    for function in (kd.cwtm_loss, kd.reference.cwtm_loss):
        expected = function(STUDENT, TARGET, confidence=confidence, normalize=False)
        with pytest.warns(FutureWarning, match="^cwtm_loss: normalise is now called normalize$") as warned:
            assert function(STUDENT, TARGET, confidence=confidence, normalise=False) == expected
        assert warned[0].filename == __file__
    with pytest.warns(FutureWarning, match="^CWTMLoss: normalise is now called normalize$") as warned:
        module = kd.nn.CWTMLoss(normalise=False)
    assert warned[0].filename == __file__
    assert module(STUDENT, TARGET, confidence=confidence) == expected
