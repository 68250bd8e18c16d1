"""joint_cross_entropy: the compiled op against the reference twin."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOATS, assert_equal, assert_same_formula, draw, labels
from student_losses import check, run

import kdkernels as kd

pytestmark = pytest.mark.numeric

nan = torch.nan


@pytest.mark.parametrize("transforms, images, classes", [(4, 64, 100), (4, 1, 1), (1, 33, 10), (2, 7, 5), (3, 5, 341), (4, 0, 3)])
def test_sizes(machine, transforms, images, classes):
    student = draw(transforms * images, transforms * classes, device=machine)
    target = labels(images, classes=classes, device=machine)
    loss, _ = check(kd.joint_cross_entropy, student, target, transforms=transforms)
    assert images or loss == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(device, dtype):
    student, target = draw(32, 40, dtype=dtype, device=device), labels(8, classes=10, device=device)
    loss, gradient = check(kd.joint_cross_entropy, student, target)
    assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32) and gradient.dtype is dtype


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 7, 255])
def test_reductions_and_ignored_images(machine, ignore_index, reduction):
    """255 is the joint label of an image of class 63."""
    student, target = draw(48, 400, device=machine), labels(12, classes=100, device=machine)
    target[:2] = 63
    target[::5] = ignore_index
    student[20] = nan  # of an image that is ignored
    options = dict(ignore_index=ignore_index, reduction=reduction)
    loss, gradient = check(kd.joint_cross_entropy, student, target, **options)
    assert loss.isfinite().all() and (gradient[20:24] == 0).all()
    if reduction == "none":
        assert (loss[20:24] == 0).all() and (loss[4:8] > 0).all()
    target[:] = ignore_index
    loss, gradient = run(machine, kd.joint_cross_entropy, student, target, **options)
    assert (loss == 0).all() and (gradient == 0).all()


def test_is_label_smoothing_of_none_with_a_tensor_of_labels(machine):
    """To the bit: the same kernel."""
    student, target = draw(64, 40, device=machine), labels(16, classes=10, device=machine)
    joint = (4 * target[:, None] + torch.arange(4, device=machine)).flatten()
    for reduction in ("none", "batchmean"):
        ours = run(machine, kd.joint_cross_entropy, student, target, reduction=reduction)
        assert_equal(ours, run(machine, kd.label_smoothing_loss, student, joint, smoothing=0.0, reduction=reduction))


@pytest.mark.parametrize("layout", ["columns", "every other", "offset"])
def test_layouts(machine, layout):
    student, target = draw(24, 40, device=machine), labels(6, classes=10, device=machine)
    if layout == "columns":
        student = student.t().contiguous().t()
    if layout == "every other":
        student = draw(48, 80, device=machine)[::2, ::2]
    if layout == "offset":
        student = draw(24, 43, device=machine)[:, 3:]
    check(kd.joint_cross_entropy, student, target)
    check(kd.joint_cross_entropy, student, target.repeat_interleave(2)[::2], reduction="none")


def test_upstream_gradients(machine):
    student, target = draw(24, 40, device=machine), labels(6, classes=10, device=machine)
    check(kd.joint_cross_entropy, student, target, upstream=torch.tensor(-3.0, device=machine))
    check(kd.joint_cross_entropy, student, target, reduction="none", upstream=draw(24, seed=3, device=machine))


@pytest.mark.parametrize("denominator", [7.0, torch.tensor(7.0)])
def test_denominator(machine, denominator):
    student, target = draw(24, 40, device=machine), labels(6, classes=10, device=machine)
    target[0] = -100
    check(kd.joint_cross_entropy, student, target, denominator=denominator)
    mean = run(machine, kd.joint_cross_entropy, student, target, denominator=denominator)
    total = run(machine, kd.joint_cross_entropy, student, target, reduction="sum")
    torch.testing.assert_close(mean, tuple(each / 7 for each in total))


def test_labels_out_of_range(machine):
    student, target = draw(3, 4, 20, device=machine), torch.tensor([[1], [5], [2**62]], device=machine)
    with kd.backend(machine):
        if machine == "cpu":
            rule = r"^joint_cross_entropy: target contains {}, valid labels are 0\.\.4 \(or ignore_index=-100\)$"
            for bad in (5, -1, 2**62, -(2**63)):
                with pytest.raises(ValueError, match=rule.format(bad)):
                    kd.joint_cross_entropy(student[0], torch.tensor([bad]))
        else:
            grad = torch.vmap(torch.func.grad(kd.joint_cross_entropy))(student, target)
            assert grad[1:].isnan().all() and grad[0].isfinite().all()


def test_torch(device):
    student, target = draw(5, 16, 40, device=device), labels(5, 4, classes=10, device=device)
    expected = run(device, kd.joint_cross_entropy, student[0], target[0])
    compiled = torch.compile(kd.joint_cross_entropy, fullgraph=True, backend="aot_eager")
    assert_equal(run(device, compiled, student[0], target[0]), expected)
    with kd.backend(device):
        each = torch.stack([kd.joint_cross_entropy(*pair) for pair in zip(student, target)])
        assert_equal(torch.vmap(kd.joint_cross_entropy)(student, target), each)
        none = lambda s, t: kd.joint_cross_entropy(s, t, reduction="none")  # noqa: E731
        assert_equal(torch.vmap(none)(student, target), torch.stack([none(*pair) for pair in zip(student, target)]))
        shared = torch.vmap(kd.joint_cross_entropy, in_dims=(0, None))(student, target[0])
        assert shared[0] == each[0] and shared.shape == (5,)
        grad = torch.vmap(torch.func.grad(kd.joint_cross_entropy))(student, target)
        torch.testing.assert_close(grad[0], expected[1])


def test_second_derivatives():
    student, target = draw(8, 12, scale=1.0, dtype=torch.float64).requires_grad_(), torch.tensor([2, -100])
    assert torch.autograd.gradcheck(lambda student: kd.joint_cross_entropy(student, target), student)
    assert torch.autograd.gradgradcheck(lambda student: kd.joint_cross_entropy(student, target), student)
    target[1] = 0
    direct = F.cross_entropy(student, torch.tensor([8, 9, 10, 11, 0, 1, 2, 3]))
    found = []
    for loss in (kd.joint_cross_entropy(student, target, ignore_index=11), direct):
        (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), student)[0])
    assert_same_formula(*found)


def refuses(error, message):
    return pytest.raises(error, match="^joint_cross_entropy: " + re.escape(message) + "$")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend):
    student, target = torch.zeros(8, 12), torch.tensor([0, 2])
    with kd.backend(backend):
        with refuses(ValueError, "joint_logits must have transforms * len(target) = 12 rows, got [8, 12]"):
            kd.joint_cross_entropy(student, torch.tensor([0, 1, 2]))
        with refuses(ValueError, "joint_logits must have a multiple of transforms=4 classes, got [8, 11]"):
            kd.joint_cross_entropy(student[:, 1:], target)
        for bad in (0, -4):
            with refuses(ValueError, f"transforms must be >= 1, got {bad}"):
                kd.joint_cross_entropy(student, target, transforms=bad)
        with refuses(TypeError, "transforms must be an int, got float"):
            kd.joint_cross_entropy(student, target, transforms=4.0)
        with refuses(ValueError, "joint_logits must be [rows, classes], got [8, 12, 1]"):
            kd.joint_cross_entropy(student[..., None], target)
        with refuses(ValueError, "at least 1 class is needed, got logits [8, 0] with dim=1"):
            kd.joint_cross_entropy(student[:, :0], target)
        rule = "joint_logits must be float32, float16, bfloat16 or float64, got int64; convert it with joint_logits.float()"
        with refuses(TypeError, rule):
            kd.joint_cross_entropy(student.long(), target)
        with refuses(ValueError, "target must have one value per image, [B], got [2, 2]"):
            kd.joint_cross_entropy(student, torch.zeros(2, 2, dtype=torch.int64))
        rule = "target must hold integer class labels, got float32; use target.argmax(dim) of probabilities"
        with refuses(TypeError, rule):
            kd.joint_cross_entropy(student, target.float())
        with refuses(ValueError, "joint_logits and target must be on one device, got cpu and meta"):
            kd.joint_cross_entropy(student, target.to("meta"))
        with refuses(ValueError, "target contains 3, valid labels are 0..2 (or ignore_index=-100)"):
            kd.joint_cross_entropy(student, torch.tensor([0, 3]))
        with refuses(ValueError, "reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got 'max'"):
            kd.joint_cross_entropy(student, target, reduction="max")
        wide = torch.zeros(1).expand(4, 2**24 + 4)
        with refuses(ValueError, "at most 16777216 classes are possible, got logits [4, 16777220] with dim=1"):
            kd.joint_cross_entropy(wide, target[:1])
