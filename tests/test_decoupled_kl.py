"""decoupled_kl: the compiled op against the reference twin, and as a citizen of PyTorch."""

import itertools
import math
import re

import pytest
import torch
from helpers import FLOATS, assert_same_formula, check, draw, labels, op_arguments, run

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
DOUBLE = torch.float64
# Degenerate, nothing but the label's odds, below a vector, common, common, odd, vocabulary.
CLASSES = (1, 2, 3, 7, 10, 100, 1001, 32000)
ROWS = (0, 1, 3, 64, 257)
SIZES = [(n, c) for n, c in itertools.product(ROWS, CLASSES) if n * c <= 40_000]


def logits(*shape, device="cpu", **options):
    return [draw(*shape, seed=seed, device=device, **options) for seed in (0, 1)]


@pytest.mark.parametrize("rows, classes", SIZES)
def test_sizes(machine, rows, classes):
    student, teacher = logits(rows, classes, device=machine)
    target = labels(rows, classes=classes, device=machine)
    loss, *gradients = check(kd.decoupled_kl, student, teacher, target, reduction="none")
    assert loss.shape == (rows,)
    if classes == 1:
        assert not loss.any() and not gradients[0].any() and not gradients[1].any()
    check(kd.decoupled_kl, student, teacher, target, temperature=1.0, alpha=0.5, beta=2.0)


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_dtypes(device, dtypes):
    student, teacher = (draw(33, 100, seed=i, dtype=dtype, device=device) for i, dtype in enumerate(dtypes))
    loss, *_ = check(kd.decoupled_kl, student, teacher, labels(33, classes=100, device=device))
    assert loss.dtype == (DOUBLE if DOUBLE in dtypes else torch.float32)


@pytest.mark.parametrize("layout", ["dim=1", "dim=0", "channels_last", "every other"])
def test_layouts(machine, layout):
    student, teacher = logits(2, 10, 4, 6, device=machine)
    dim = 0 if layout == "dim=0" else 1
    if layout == "channels_last":
        student = student.to(memory_format=torch.channels_last)
    if layout == "every other":
        student = draw(2, 20, 4, 12, device=machine)[:, ::2, :, ::2]
    rows = student.movedim(dim, -1).shape[:-1]
    target = labels(*rows, classes=student.shape[dim], device=machine)
    for reduction in ("none", "batchmean"):
        check(kd.decoupled_kl, student, teacher, target, dim=dim, reduction=reduction)
    ours = kd.decoupled_kl(student, teacher, target.to(torch.uint8).unsqueeze(dim), dim=dim)
    assert ours == kd.decoupled_kl(student, teacher, target, dim=dim)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
def test_reductions_masks_and_weights(machine, reduction):
    student, teacher = logits(5, 13, 21, device=machine)
    target = labels(5, 13, classes=21, device=machine)
    target[1, ::3] = 255
    rows = dict(
        mask=labels(5, 13, classes=3, seed=1, device=machine) > 0,
        row_weight=draw(5, 13, seed=2, device=machine).abs(),
        temperature=draw(5, 13, seed=3, device=machine).abs() + 0.5,
    )
    for names in ((), ("mask",), ("row_weight",), ("mask", "row_weight", "temperature")):
        options = {name: rows[name] for name in names}
        check(kd.decoupled_kl, student, teacher, target, reduction=reduction, ignore_index=255, **options)
    if reduction not in ("none", "sum"):
        for denominator in (100.0, torch.tensor(100)):
            options = dict(ignore_index=255, reduction=reduction, denominator=denominator)
            check(kd.decoupled_kl, student, teacher, target, **options)
    for tensor in (student, teacher):
        tensor[~rows["mask"]] = tensor[target == 255] = nan
    check(kd.decoupled_kl, student, teacher, target, reduction=reduction, ignore_index=255, **rows)


def test_parts(machine):
    student, teacher = logits(6, 9, device=machine, dtype=DOUBLE)
    target, found = labels(6, classes=9, device=machine), []
    target[2] = -100
    for backend in (machine, "reference"):
        with kd.backend(backend):
            for reduction in ("none", "batchmean"):
                options = dict(temperature=3.0, alpha=0.5, beta=2.0, reduction=reduction)
                loss, parts = kd.decoupled_kl(student, teacher, target, return_parts=True, **options)
                assert_same_formula(loss, 0.5 * parts["tckd"] + 2 * parts["nckd"])
                found.append((loss, parts))
                # A part is there without its weight.
                options.update(alpha=0.0, beta=0.0)
                _, others = kd.decoupled_kl(student, teacher, target, return_parts=True, **options)
                assert_same_formula(others, parts)
    assert_same_formula(found[:2], found[2:])


def test_no_row_counts(machine):
    student, teacher = (torch.full((3, 4), nan, device=machine) for _ in range(2))
    target, hidden = torch.full((3,), -100, device=machine), torch.zeros(3, dtype=torch.bool, device=machine)
    for loss, *gradients in (
        run(machine, kd.decoupled_kl, student, teacher, target),
        run(machine, kd.decoupled_kl, student, teacher, target + 101, mask=hidden),
        run(machine, kd.decoupled_kl, student[:0], teacher[:0], target[:0]),
    ):
        assert loss == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("classes", [2, 10, 1001])
def test_equal_rows(machine, classes):
    """Loss and gradients are exactly 0."""
    student = draw(9, classes, device=machine)
    student[3] *= 1e4
    student[4, classes // 2] = -inf
    target = labels(9, classes=classes, device=machine)
    for T in (0.5, 4.0, 20.0):
        for found in run(machine, kd.decoupled_kl, student, student.clone(), target, temperature=T):
            assert not found.any()


def test_saturated_logits(machine):
    """Of 1e4, where a softmax over all classes would leave the others nothing."""
    student, teacher = logits(64, 37, device=machine, scale=1e4)
    target = labels(64, classes=37, device=machine)
    check(kd.decoupled_kl, student, teacher, target, reduction="none", temperature=1.0)
    # The label is 1e4 ahead, and the others differ by no more than usual.
    student, teacher = logits(64, 37, device=machine)
    ahead = 1e4 * torch.nn.functional.one_hot(target, 37)
    options = dict(reduction="none", temperature=1.0)
    loss, gradient, _ = check(kd.decoupled_kl, student + ahead, teacher + ahead, target, **options)
    assert (loss > 0).all() and gradient.abs().amax(1).gt(1e-2).all()


def test_classes_of_probability_0(machine):
    student, teacher = logits(12, 10, device=machine)
    target = torch.arange(12, device=machine) % 9
    student[0:2, 9] = teacher[1:3, 9] = -inf  # by the student alone: NCKD is inf
    student[3, 3] = -inf  # the label: TCKD is inf
    teacher[4, 4] = -inf
    teacher[5, torch.arange(10, device=machine) != 5] = -inf  # one-hot
    student[6, torch.arange(10, device=machine) != 6] = -inf
    for tensor in (student, teacher):
        tensor[7, torch.arange(10, device=machine) != 7] = -inf
    with kd.backend(machine):
        _, parts = kd.decoupled_kl(student, teacher, target, reduction="none", return_parts=True)
    assert parts["nckd"].isinf().tolist() == [at in (0, 6) for at in range(12)]
    assert parts["tckd"].isinf().tolist() == [at in (3, 6) for at in range(12)]
    assert parts["nckd"][5] == 0 and parts["tckd"][7] == parts["nckd"][7] == 0
    usual = [1, 2, 4, 5, 7, 8, 9, 10, 11]
    check(kd.decoupled_kl, student[usual], teacher[usual], target[usual], reduction="none")
    check(kd.decoupled_kl, student[3:4], teacher[3:4], target[3:4], alpha=0.0)  # a term of weight 0 adds nothing
    check(kd.decoupled_kl, student[:1], teacher[:1], target[:1], beta=0.0)
    for bad in (nan, inf):
        for row, which in ((8, student), (9, teacher)):
            which[row, 0] = bad
        which[10, 1] = bad  # the label
        with kd.backend(machine):
            loss, *gradients = run(machine, kd.decoupled_kl, student, teacher, target, reduction="none")
        assert loss[8:11].isnan().all() and loss[11].isfinite()
        assert all(gradient[8:11].isnan().all() for gradient in gradients[:1])


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
def test_row_weights_that_are_learned(device, reduction):
    results = []
    for backend in (device, "reference"):
        student, weight = (draw(*shape, seed=3, dtype=DOUBLE, device=device) for shape in ((8, 10), (8,)))
        inputs = [x.requires_grad_() for x in (student, student.flip(0), weight)]
        target = labels(8, classes=10, device=device)
        target[1] = -100
        with kd.backend(backend):
            loss, parts = kd.decoupled_kl(
                inputs[0], inputs[1], target, row_weight=weight, reduction=reduction, return_parts=True
            )
            results.append((loss, parts, torch.autograd.grad(loss.sum(), inputs)))
    assert_same_formula(*results)


# As a citizen of PyTorch


def test_gradcheck(device):
    student, teacher = (x.requires_grad_() for x in logits(4, 5, scale=1.0, dtype=DOUBLE, device=device))
    target = labels(4, classes=5, device=device)
    with kd.backend(device):
        assert torch.autograd.gradcheck(lambda s, t: kd.decoupled_kl(s, t, target), (student, teacher))
        assert torch.autograd.gradgradcheck(lambda s, t: kd.decoupled_kl(s, t, target), (student, teacher))


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_compile(device, backend):
    backend = device if backend == "library" else backend
    target = labels(8, classes=10, device=device)

    def loss(student, teacher):
        return 2 * kd.decoupled_kl(student, teacher, target)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        student, teacher = (draw(8, 10, seed=each, dtype=DOUBLE, device=device) for each in (seed, 7))
        assert_same_formula(run(backend, compiled, student, teacher), run(backend, loss, student, teacher))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (-1, 1, 0)], ids=str)
def test_vmap(device, in_dims, reduction):
    def stacked(tensors, at):
        return tensors[0] if at is None else torch.stack(tensors, at)

    drawn = [draw(6, 5, seed=seed, dtype=DOUBLE, device=device) for seed in range(6)]
    targets = [labels(6, classes=5, seed=seed, device=device) for seed in range(3)]
    targets[1][:2] = -100
    tensors = [stacked(each, at) for each, at in zip((drawn[:3], drawn[3:], targets), in_dims)]
    mask = labels(6, classes=3, device=device) > 0

    def loss(student, teacher, target):
        return kd.decoupled_kl(student, teacher, target, mask=mask, reduction=reduction)

    found = []
    for backend in (device, "reference"):
        with kd.backend(backend):
            squares = torch.func.grad(lambda s, t, y: (loss(s, t, y) ** 2).sum(), (0, 1))
            found.append((torch.vmap(loss, in_dims)(*tensors), torch.vmap(squares, in_dims)(*tensors)))
    assert_same_formula(*found)


@pytest.mark.parametrize("reduction", [0, 2])
def test_opcheck(device, reduction):
    op = torch.ops.kdkernels.decoupled_kl.default
    for dtype in (torch.float32, DOUBLE, torch.bfloat16, torch.float16):
        student = draw(4, 6, 5, dtype=dtype, device=device).requires_grad_()
        arithmetic = DOUBLE if dtype is DOUBLE else torch.float32
        given = op_arguments(
            op,
            student=student,
            teacher=student.detach().flip(0).requires_grad_(),
            target=labels(4, 6, classes=5, device=device),
            mask=torch.arange(24, device=device).view(4, 6) > 3,
            row_weight=torch.ones(4, 6, dtype=arithmetic, device=device),
            denominator=torch.tensor(7.0, dtype=DOUBLE, device=device),
            temperature=2.0,
            alpha=1.0,
            beta=3.0,
            ignore_index=-100,
            reduction=reduction,
            dim=2,
            grad_student=True,
            grad_teacher=True,
        )
        torch.library.opcheck(op, given)


@pytest.mark.parametrize("learns", [(True, False), (False, True)])
def test_one_gradient(device, learns):
    student, teacher = logits(8, 100, device=device)
    target = labels(8, classes=100, device=device)
    both = run(device, kd.decoupled_kl, student, teacher, target)
    student, teacher = (x.requires_grad_(learns) for x, learns in zip((student, teacher), learns))
    with kd.backend(device):
        loss = kd.decoupled_kl(student, teacher, target)
        loss.backward()
    assert torch.equal(loss.detach(), both[0])
    for tensor, learned, gradient in zip((student, teacher), learns, both[1:]):
        assert torch.equal(tensor.grad, gradient) if learned else tensor.grad is None


# Errors


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


def call(student=None, teacher=None, target=None, **options):
    student = torch.zeros(2, 3) if student is None else student
    target = torch.tensor([0, 2]) if target is None else target
    return kd.decoupled_kl(student, torch.zeros(2, 3) if teacher is None else teacher, target, **options)


def test_tensors_that_are_refused(backend):
    assert call() == 0
    with refuses(ValueError, "decoupled_kl: student [2, 3] and teacher [2, 4] must have equal shapes"):
        call(teacher=torch.zeros(2, 4))
    with refuses(TypeError, "decoupled_kl: teacher must be a torch.Tensor, got list"):
        call(teacher=[[0.0]])
    with pytest.raises(TypeError, match="^decoupled_kl: target must hold integer class labels, got float32"):
        call(target=torch.zeros(2))
    with refuses(
        ValueError, "decoupled_kl: target must have one value per row, [2] for logits [2, 3] with dim=1, got [3]"
    ):
        call(target=torch.zeros(3, dtype=torch.int64))
    for bad in (3, -1):
        with refuses(
            ValueError, f"decoupled_kl: target contains {bad}, valid labels are 0..2 (or ignore_index=-100)"
        ):
            call(target=torch.tensor([0, bad]))
    with refuses(TypeError, "decoupled_kl: mask must be bool, got float32; convert it with mask.bool()"):
        call(mask=torch.ones(2))
    with refuses(TypeError, "decoupled_kl: row_weight must be a torch.Tensor, got float"):
        call(row_weight=1.0)


def test_options_that_are_refused(backend):
    for value in (0, -1.0, inf, nan):
        with refuses(ValueError, f"decoupled_kl: temperature must be finite and > 0, got {value}"):
            call(temperature=value)
    with refuses(
        ValueError, "decoupled_kl: temperature must be finite and > 0 in every row, got -2.0"
    ):
        call(temperature=torch.tensor([1.0, -2.0]))
    for name in ("alpha", "beta"):
        for value in (-1.0, inf, nan):
            with refuses(ValueError, f"decoupled_kl: {name} must be finite and >= 0, got {value}"):
                call(**{name: value})
        with refuses(TypeError, f"decoupled_kl: {name} must be a number, got str"):
            call(**{name: "1"})
    with refuses(TypeError, "decoupled_kl: ignore_index must be an int, got float"):
        call(ignore_index=1.0)
    with refuses(TypeError, "decoupled_kl: return_parts must be a bool, got int"):
        call(return_parts=1)
    with refuses(
        ValueError,
        "decoupled_kl: reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got 'max'",
    ):
        call(reduction="max")
    for value in (0, -1.0, nan):
        with refuses(ValueError, f"decoupled_kl: denominator must be finite and > 0, got {value}"):
            call(denominator=value)
    with pytest.raises(ValueError, match="^decoupled_kl: denominator is what a mean divides by, and reduction='sum'"):
        call(denominator=2, reduction="sum")
    assert call(torch.ones(2, 3).cumsum(1), denominator=torch.tensor(-1.0)).isnan()


@pytest.mark.parametrize("temperature", [1.0, 3.0, 3.3, 5.0])
def test_a_teacher_of_one_class_has_no_gradient_however_large_its_logits(temperature):
    student = torch.tensor([[0.0, 5000.0, -3000.0, 1234.5]])
    teacher = torch.tensor([[10000.0, -7000.3, 0.7, 9000.0]], requires_grad=True)
    loss = kd.decoupled_kl(student, teacher, torch.tensor([0]), temperature=temperature)
    assert torch.autograd.grad(loss, teacher)[0].eq(0).all()
