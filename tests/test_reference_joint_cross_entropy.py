"""The twin of joint_cross_entropy against torch's own function."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw, labels

from kdkernels import reference
from kdkernels._shared.label_targets import IGNORED, NO_CLASS, joint_labels

pytestmark = pytest.mark.numeric


def test_joint_labels_are_class_major():
    target = torch.tensor([2, 0])
    assert joint_labels(target, 4, 3, -100).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    assert joint_labels(target, 1, 3, -100).tolist() == [2, 0]
    # 255 is no label of a class, but could be a joint one.
    ignored = joint_labels(torch.tensor([63, 255, 100, -1]), 4, 100, 255)
    assert ignored.tolist() == [252, 253, 254, 255] + 4 * [IGNORED] + 8 * [NO_CLASS]
    # Four times these would be labels again.
    assert joint_labels(torch.tensor([2**62, -(2**63)]), 4, 100, -100).tolist() == 8 * [NO_CLASS]


@pytest.mark.parametrize("transforms", [1, 2, 4, 5])
def test_is_cross_entropy_with_a_tensor_of_labels(transforms):
    student = draw(6 * transforms, 7 * transforms, dtype=torch.float64)
    target = labels(6, classes=7)
    joint = (transforms * target[:, None] + torch.arange(transforms)).flatten()
    for reduction in ("batchmean", "mean", "elementmean", "sum", "none"):
        theirs = "mean" if reduction.endswith("mean") else reduction
        ours = reference.joint_cross_entropy(student, target, transforms=transforms, reduction=reduction)
        assert_same_formula(ours, F.cross_entropy(student, joint, reduction=theirs))


def test_the_rows_of_an_image_are_in_the_order_of_its_transforms():
    """A head that is sure of class and transform has no loss."""
    sure = torch.zeros(8, 12)
    target = torch.tensor([2, 0])
    for image in range(2):
        for turn in range(4):
            sure[4 * image + turn, 4 * target[image] + turn] = 1e4
    assert reference.joint_cross_entropy(sure, target) == 0
    assert reference.joint_cross_entropy(sure, target.flip(0)) == 1e4


def test_ignored_images_drop_out_with_all_their_rows():
    student, target = draw(12, 20, dtype=torch.float64), torch.tensor([1, 3, 4])
    student[4:8] = torch.nan
    student.requires_grad_()
    for reduction in ("batchmean", "sum", "none"):
        ours = reference.joint_cross_entropy(student, target, ignore_index=3, reduction=reduction)
        rows = torch.cat([student[:4], student[8:]])
        expected = reference.joint_cross_entropy(rows, target[::2], reduction=reduction)
        assert_same_formula(torch.cat([ours[:4], ours[8:]]) if reduction == "none" else ours, expected)
        (grad,) = torch.autograd.grad(ours.sum(), student)
        assert (grad[4:8] == 0).all() and grad.isfinite().all()
    ours = reference.joint_cross_entropy(student, torch.full_like(target, 3), ignore_index=3)
    assert ours == 0 and (torch.autograd.grad(ours, student)[0] == 0).all()
    assert reference.joint_cross_entropy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0


def test_labels_out_of_range_make_their_rows_nan_where_nothing_can_be_raised():
    student, target = draw(3, 4, 20), torch.tensor([[1], [5], [2**62]])
    # Inside vmap a label cannot be looked at.
    grad = torch.vmap(torch.func.grad(reference.joint_cross_entropy))(student, target)
    assert grad[1:].isnan().all() and grad[0].isfinite().all()
    with pytest.raises(ValueError, match="^joint_cross_entropy: target contains 5, valid labels are 0..4 "):
        reference.joint_cross_entropy(student[0], target[1])


def test_derivatives_of_any_order():
    target = torch.tensor([1, -100])
    student = draw(6, 6, scale=1.0, dtype=torch.float64).requires_grad_()
    call = lambda student: reference.joint_cross_entropy(student, target, transforms=3)  # noqa: E731
    assert torch.autograd.gradcheck(call, student)
    assert torch.autograd.gradgradcheck(call, student)


def test_a_denominator_replaces_the_count():
    student, target = draw(12, 20, dtype=torch.float64), torch.tensor([1, 3, 4])
    total = reference.joint_cross_entropy(student, target, ignore_index=3, reduction="sum")
    for denominator in (5, torch.tensor(5.0)):
        ours = reference.joint_cross_entropy(student, target, ignore_index=3, denominator=denominator)
        assert_same_formula(ours, total / 5)
