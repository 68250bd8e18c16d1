"""The twin of class_range_cross_entropy against torch's own function."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw, labels

from kdkernels import reference

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("start, stop", [(0, 10), (0, 4), (3, 7), (9, 10)])
def test_is_cross_entropy_of_a_slice(start, stop):
    student = draw(4, 10, 3, dtype=torch.float64).requires_grad_()
    target = start + labels(4, 3, classes=stop - start)
    target[0, 1] = -100
    sliced = torch.where(target == -100, -100, target - start)
    for reduction in ("batchmean", "mean", "elementmean", "sum", "none"):
        theirs = "mean" if reduction.endswith("mean") else reduction
        ours = reference.class_range_cross_entropy(student, target, start, stop, reduction=reduction, dim=1)
        expected = F.cross_entropy(student[:, start:stop], sliced, reduction=theirs)
        assert_same_formula(ours, expected)
        grads = [torch.autograd.grad(loss.sum(), student)[0] for loss in (ours, expected)]
        assert_same_formula(*grads)
        assert (grads[0][:, :start] == 0).all() and (grads[0][:, stop:] == 0).all()


def test_all_classes_are_label_smoothing_of_none():
    student, target = draw(5, 9, dtype=torch.float64), labels(5, classes=9)
    ours = reference.class_range_cross_entropy(student, target, 0, 9)
    assert_same_formula(ours, reference.label_smoothing_loss(student, target, smoothing=0.0))


def test_other_classes_are_not_looked_at():
    student, target = draw(5, 9, dtype=torch.float64), 3 + labels(5, classes=3)
    expected = reference.class_range_cross_entropy(student, target, 3, 6)
    student[:, :3], student[:, 6:] = torch.nan, torch.inf
    student.requires_grad_()
    ours = reference.class_range_cross_entropy(student, target, 3, 6)
    assert ours == expected
    (grad,) = torch.autograd.grad(ours, student)
    assert grad.isfinite().all() and grad[:, 3:6].all()


def test_an_ignored_label_may_lie_within_the_range():
    student, target = draw(3, 9, dtype=torch.float64), torch.tensor([4, 5, 3])
    ours = reference.class_range_cross_entropy(student, target, 3, 6, ignore_index=5)
    assert_same_formula(ours, reference.class_range_cross_entropy(student[::2], target[::2], 3, 6))
    target = torch.tensor([4, -1, 3])  # what remains of it is not 4 classes from the first
    ours = reference.class_range_cross_entropy(student, target, 3, 6, ignore_index=-1)
    assert_same_formula(ours, reference.class_range_cross_entropy(student[::2], target[::2], 3, 6))


def test_labels_out_of_range_make_their_row_nan_where_nothing_can_be_raised():
    student, target = draw(4, 1, 9), torch.tensor([[4], [2], [6], [-(2**63)]])
    call = lambda student, target: reference.class_range_cross_entropy(student, target, 3, 6)  # noqa: E731
    grad = torch.vmap(torch.func.grad(call))(student, target)  # inside vmap a label cannot be looked at
    assert grad[1:, :, 3:6].isnan().all() and grad[0].isfinite().all()
    with pytest.raises(ValueError, match="^class_range_cross_entropy: target contains 2, valid labels are 3..5 "):
        call(student[1], target[1])


def test_derivatives_of_any_order():
    target = torch.tensor([2, -100, 3])
    student = draw(3, 5, scale=1.0, dtype=torch.float64).requires_grad_()
    call = lambda student: reference.class_range_cross_entropy(student, target, 1, 4)  # noqa: E731
    assert torch.autograd.gradcheck(call, student)
    assert torch.autograd.gradgradcheck(call, student)


def test_a_denominator_replaces_the_count():
    student, target = draw(3, 9, dtype=torch.float64), torch.tensor([4, 5, 3])
    total = reference.class_range_cross_entropy(student, target, 3, 6, ignore_index=5, reduction="sum")
    for denominator in (5, torch.tensor(5.0)):
        ours = reference.class_range_cross_entropy(student, target, 3, 6, ignore_index=5, denominator=denominator)
        assert_same_formula(ours, total / 5)
