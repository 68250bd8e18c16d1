"""class_range_cross_entropy: the compiled op against the reference twin."""

import re

import pytest
import torch
from helpers import FLOATS, assert_equal, assert_same_formula, draw, labels
from student_losses import check, run
from torch._dynamo.testing import CompileCounterWithBackend

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = torch.inf, torch.nan
RANGES = [(0, 1), (0, 16), (3, 20), (16, 100), (17, 33), (99, 100), (0, 100)]


def within(start, stop, *shape, device="cpu"):
    return start + labels(*shape, classes=stop - start, device=device)


def assert_zero_outside(gradient, start, stop, dim=-1):
    assert not gradient.narrow(dim, 0, start).any()
    assert not gradient.narrow(dim, stop, gradient.shape[dim] - stop).any()


@pytest.mark.parametrize("rows", [0, 1, 9, 256])
@pytest.mark.parametrize("start, stop", RANGES)
def test_sizes(machine, start, stop, rows):
    student, target = draw(rows, 100, device=machine), within(start, stop, rows, device=machine)
    loss, gradient = check(kd.class_range_cross_entropy, student, target, start=start, stop=stop)
    assert_zero_outside(gradient, start, stop)
    assert rows or loss == 0


@pytest.mark.parametrize("start, stop", [(5, 70), (8, 64)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(device, dtype, start, stop):
    student, target = draw(33, 100, dtype=dtype, device=device), within(start, stop, 33, device=device)
    loss, gradient = check(kd.class_range_cross_entropy, student, target, start=start, stop=stop)
    assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32) and gradient.dtype is dtype
    assert_zero_outside(gradient, start, stop)


@pytest.mark.parametrize("start, stop", [(0, 3), (4, 9), (0, 10)])
@pytest.mark.parametrize("layout", ["dim=1", "dim=0", "channels_last", "every other", "columns"])
def test_layouts(machine, layout, start, stop):
    student, dim = draw(2, 10, 4, 6, device=machine), 1
    if layout == "dim=0":
        student, dim = draw(10, 2, 4, 6, device=machine), 0
    if layout == "channels_last":
        student = student.to(memory_format=torch.channels_last)
    if layout == "every other":
        student = draw(2, 20, 4, 12, device=machine)[:, ::2, :, ::2]
    if layout == "columns":
        student = draw(10, 12, device=machine).t()
    target = within(start, stop, *student.sum(dim).shape, device=machine)
    target.view(-1)[0] = -100
    for reduction in ("none", "batchmean"):
        options = dict(start=start, stop=stop, dim=dim, reduction=reduction)
        _, gradient = check(kd.class_range_cross_entropy, student, target, **options)
        assert_zero_outside(gradient, start, stop, dim)


def test_other_classes_are_not_looked_at(machine):
    student, target = draw(40, 100, device=machine), within(30, 50, 40, device=machine)
    expected = run(machine, kd.class_range_cross_entropy, student, target, start=30, stop=50)
    student[:, :30], student[:, 50:] = nan, inf
    assert_equal(run(machine, kd.class_range_cross_entropy, student, target, start=30, stop=50), expected)


def test_all_classes_are_label_smoothing_of_none(machine):
    """To the bit: the same kernel."""
    student, target = draw(64, 40, device=machine), labels(64, classes=40, device=machine)
    ours = run(machine, kd.class_range_cross_entropy, student, target, start=0, stop=40)
    assert_equal(ours, run(machine, kd.label_smoothing_loss, student, target, smoothing=0.0))


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 7, 15])
def test_reductions_and_ignored_rows(machine, ignore_index, reduction):
    """15 is a label of the range, and 7 what a label of the range is within it."""
    student, target = draw(40, 30, device=machine), within(10, 20, 40, device=machine)
    target[::4] = ignore_index
    student[4] = nan
    options = dict(start=10, stop=20, ignore_index=ignore_index, reduction=reduction)
    loss, gradient = check(kd.class_range_cross_entropy, student, target, **options)
    assert loss.isfinite().all() and (gradient[::4] == 0).all()
    target[:] = ignore_index
    loss, gradient = run(machine, kd.class_range_cross_entropy, student, target, **options)
    assert (loss == 0).all() and (gradient == 0).all()


def test_upstream_gradients(machine):
    student, target = draw(24, 40, device=machine), within(8, 30, 24, device=machine)
    options = dict(start=8, stop=30)
    check(kd.class_range_cross_entropy, student, target, upstream=torch.tensor(-3.0, device=machine), **options)
    above = draw(24, seed=3, device=machine)
    check(kd.class_range_cross_entropy, student, target, reduction="none", upstream=above, **options)


@pytest.mark.parametrize("denominator", [7.0, torch.tensor(7.0)])
def test_denominator(machine, denominator):
    student, target = draw(24, 40, device=machine), within(8, 30, 24, device=machine)
    target[0] = -100
    options = dict(start=8, stop=30)
    check(kd.class_range_cross_entropy, student, target, denominator=denominator, **options)
    mean = run(machine, kd.class_range_cross_entropy, student, target, denominator=denominator, **options)
    total = run(machine, kd.class_range_cross_entropy, student, target, reduction="sum", **options)
    torch.testing.assert_close(mean, tuple(each / 7 for each in total))


def test_labels_out_of_range(machine):
    student = draw(5, 1, 9, device=machine)
    target = torch.tensor([[4], [2], [6], [-(2**63)], [2**63 - 1]], device=machine)
    call = lambda student, target: kd.class_range_cross_entropy(student, target, 3, 6)  # noqa: E731
    with kd.backend(machine):
        if machine == "cpu":
            rule = r"^class_range_cross_entropy: target contains {}, valid labels are 3\.\.5 \(or ignore_index=-100\)$"
            for bad in target[1:, 0].tolist():
                with pytest.raises(ValueError, match=rule.format(bad)):
                    call(student[0], torch.tensor([bad]))
        else:
            grad = torch.vmap(torch.func.grad(call))(student, target)
            assert grad[1:, :, 3:6].isnan().all() and grad[0].isfinite().all()


def test_torch(device):
    student, target = draw(5, 16, 40, device=device), within(10, 30, 5, 16, device=device)
    call = lambda student, target, **o: kd.class_range_cross_entropy(student, target, 10, 30, **o)  # noqa: E731
    expected = run(device, call, student[0], target[0])
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_equal(run(device, compiled, student[0], target[0]), expected)
    with kd.backend(device):
        each = torch.stack([call(*pair) for pair in zip(student, target)])
        assert_equal(torch.vmap(call)(student, target), each)
        by_last = torch.vmap(lambda s, t: call(s, t, dim=0), in_dims=(0, 0))(student.mT, target)
        torch.testing.assert_close(by_last, each)
        grad = torch.vmap(torch.func.grad(call))(student, target)
        torch.testing.assert_close(grad[0], expected[1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ranges_that_change_in_a_graph(backend):
    """Tasks that come one after another, each with the next classes: more of them than graphs are made."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(kd.class_range_cross_entropy, fullgraph=True, backend=counter)
    student = draw(8, 60, dtype=torch.float64)
    with kd.backend(backend):
        for task in range(12):
            start, stop = 4 * task, 4 * task + 4 + task % 3
            target = within(start, stop, 8)
            found = []
            for function in (compiled, kd.class_range_cross_entropy):
                leaf = student.clone().requires_grad_()
                loss = function(leaf, target, start, stop)
                found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
            assert_same_formula(*found)
    assert counter.frame_count <= 4  # 0 is a graph of its own, and so may be the second range


def test_second_derivatives():
    student, target = draw(4, 7, scale=1.0, dtype=torch.float64).requires_grad_(), torch.tensor([2, 3, -100, 4])
    call = lambda student: kd.class_range_cross_entropy(student, target, 2, 5)  # noqa: E731
    assert torch.autograd.gradcheck(call, student)
    assert torch.autograd.gradgradcheck(call, student)
    found = []
    for loss in (call(student), kd.label_smoothing_loss(student[:2, 2:5], target[:2] - 2, smoothing=0.0)):
        (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), student)[0])
    assert not torch.equal(*found)  # the second has one row less
    loss = kd.class_range_cross_entropy(student[:2], target[:2], 2, 5)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    assert_same_formula(torch.autograd.grad(gradient.square().sum(), student)[0], found[1])


def refuses(error, message):
    return pytest.raises(error, match="^class_range_cross_entropy: " + re.escape(message) + "$")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend):
    student, target = torch.zeros(2, 5), torch.tensor([1, 2])
    rule = "start and stop must be a range of the classes, 0 <= start < stop <= 5 for logits [2, 5] with dim=1, got"
    with kd.backend(backend):
        for start, stop in ((-1, 3), (0, 6), (2, 2), (3, 1), (5, 6), (0, 0), (0, -1)):
            with refuses(ValueError, f"{rule} {start} and {stop}"):
                kd.class_range_cross_entropy(student, target, start, stop)
        for bad in (1.0, "1", None, True):
            with refuses(TypeError, f"start must be an int, got {type(bad).__name__}"):
                kd.class_range_cross_entropy(student, target, bad, 3)
            with refuses(TypeError, f"stop must be an int, got {type(bad).__name__}"):
                kd.class_range_cross_entropy(student, target, 1, bad)
        for bad in (0, 3):
            with refuses(ValueError, f"target contains {bad}, valid labels are 1..2 (or ignore_index=-100)"):
                kd.class_range_cross_entropy(student, torch.tensor([1, bad]), 1, 3)
        with refuses(TypeError, "student must be a torch.Tensor, got list"):
            kd.class_range_cross_entropy([[0.0]], target, 0, 1)
        with refuses(ValueError, "target must have one value per row, [2] for logits [2, 5] with dim=1, got [1]"):
            kd.class_range_cross_entropy(student, target[:1], 0, 5)
        with refuses(ValueError, "reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got 'max'"):
            kd.class_range_cross_entropy(student, target, 0, 5, reduction="max")
