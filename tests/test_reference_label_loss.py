"""The twins of the losses on labels against torch's own functions and the float64 formulas of row_oracle.py."""

import math

import numpy as np
import row_oracle
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw, labels

from kdkernels import reference
from kdkernels._shared.label_targets import smoothed_label, virtual_teacher
from kdkernels.reference.label_loss import label_loss

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
PRECISION = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
DOUBLE = torch.float64


def gradient(function, student, *rest, **options):
    student = student.clone().requires_grad_()
    loss = function(student, *rest, **options)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), grad


@pytest.mark.parametrize("temperature, on, off", [(20, 0.0105021, 0.00999493), (40, 0.0102480, 0.00999750)])
def test_virtual_teacher_of_a_hundred_classes(temperature, on, off):
    assert virtual_teacher(100, 0.99, temperature) == pytest.approx((on, off), rel=1e-5)


def test_virtual_teacher_never_overflows():
    for correct_prob in (0.0, 1.0):
        on, off = virtual_teacher(10, correct_prob, 1e-4)
        assert on + 9 * off == pytest.approx(1) and on == correct_prob


@pytest.mark.parametrize("student_temperature", [1.0, 20.0])
def test_virtual_teacher_loss_is_kl_div_with_a_tensor_of_targets(student_temperature):
    student, target, a, tau = draw(16, 10, dtype=DOUBLE), labels(16, classes=10), 0.9, 2.0
    p = torch.full_like(student, (1 - a) / 9).scatter(1, target[:, None], a)
    log_q = F.log_softmax(student / student_temperature, -1)
    ce = F.cross_entropy(student, target)
    kl = F.kl_div(log_q, F.softmax(p / tau, -1), reduction="batchmean")
    options = dict(correct_prob=a, temperature=tau, student_temperature=student_temperature)
    weights = dict(ce_weight=0.3, kl_weight=0.7)
    loss, parts = reference.virtual_teacher_loss(student, target, return_parts=True, **options, **weights)
    assert_same_formula(loss, 0.3 * ce + 0.7 * kl)
    assert_same_formula(parts, {"ce": ce, "kl": kl})
    loss = reference.virtual_teacher_loss(student, target, reduction="elementmean", **options, **weights)
    assert_same_formula(loss, 0.3 * ce + 0.7 * kl / 10)


@pytest.mark.parametrize("alpha, tau, multiplier", [(0.95, 40, 1), (0.1, 20, 100), (0.1, 40, 50)])
def test_without_student_temperature_it_is_scaled_label_smoothing(alpha, tau, multiplier):
    """The gradient of the official code's loss, KL averaged over classes included."""
    student, target, classes = draw(8, 100, dtype=DOUBLE), labels(8, classes=100), 100
    weights = dict(ce_weight=1 - alpha, kl_weight=alpha * multiplier / classes)
    _, ours = gradient(reference.virtual_teacher_loss, student, target, temperature=tau, **weights)
    _, off = virtual_teacher(classes, 0.99, tau)
    total = sum(weights.values())
    smoothing = classes * weights["kl_weight"] * off / total
    _, expected = gradient(reference.label_smoothing_loss, student, target, smoothing=smoothing)
    assert_same_formula(ours, total * expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_cross_entropy_with_that_option(smoothing):
    student, target = draw(4, 10, 3, dtype=DOUBLE), labels(4, 3, classes=10)
    target[0, 1] = -100
    for reduction in ("batchmean", "elementmean", "sum", "none"):
        theirs = "mean" if reduction.endswith("mean") else reduction
        expected = F.cross_entropy(student, target, label_smoothing=smoothing, reduction=theirs)
        options = dict(smoothing=smoothing, reduction=reduction, dim=1)
        assert_same_formula(reference.label_smoothing_loss(student, target, **options), expected)


def test_conventions_of_label_smoothing():
    assert smoothed_label(5, 0.1, "paper") == pytest.approx((0.92, 0.02))
    assert smoothed_label(5, 0.1, "others") == pytest.approx((0.9, 0.025))
    assert smoothed_label(1, 0.0, "others") == (1, 0)
    student, target = draw(6, 5, dtype=DOUBLE), labels(6, classes=5)
    ours = reference.label_smoothing_loss(student, target, smoothing=0.1, convention="others")
    assert_same_formula(ours, reference.label_smoothing_loss(student, target, smoothing=0.1 * 5 / 4))
    # All of it on the others: the label's class may be impossible.
    student[0, target[0]] = -inf
    assert reference.label_smoothing_loss(student, target, smoothing=1.0, convention="others").isfinite()
    assert reference.label_smoothing_loss(student, target, smoothing=0.1, convention="others") == inf


def test_cwtm_weighs_by_the_largest_probability():
    student, teacher = (draw(16, 10, seed=seed, dtype=DOUBLE) for seed in (0, 1))
    target = labels(16, classes=10)
    losses = F.cross_entropy(student, target, reduction="none")
    confidence = teacher.softmax(-1).amax(-1)
    weight = confidence / confidence.sum()
    assert_same_formula(reference.cwtm_loss(student, target, teacher), (weight * losses).sum())
    assert_same_formula(reference.cwtm_loss(student, target, confidence=confidence), (weight * losses).sum())
    assert_same_formula(reference.cwtm_loss(student, target, teacher, reduction="sum"), 16 * (weight * losses).sum())
    assert_same_formula(reference.cwtm_loss(student, target, teacher, reduction="none"), 16 * weight * losses)
    assert_same_formula(reference.cwtm_loss(student, target, teacher, normalize=False), (confidence * losses).mean())
    _, ours = gradient(reference.cwtm_loss, student, target, teacher)
    assert_same_formula(ours, weight[:, None] * (student.softmax(-1) - F.one_hot(target, 10)))


def test_cwtm_with_equal_confidences_is_cross_entropy():
    student, target = draw(16, 10, dtype=DOUBLE), labels(16, classes=10)
    target[3] = -100
    for confidence in (1.0, 0.25):
        ours = reference.cwtm_loss(student, target, confidence=torch.full((16,), confidence))
        assert_same_formula(ours, F.cross_entropy(student, target))


def test_cwtm_without_any_confidence_is_zero():
    for normalize in (True, False):
        options = dict(confidence=torch.zeros(3), normalize=normalize)
        loss, grad = gradient(reference.cwtm_loss, draw(3, 5), labels(3, classes=5), **options)
        assert loss == 0 and (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", row_oracle.REDUCTIONS)
@pytest.mark.parametrize("relative", [True, False])
def test_formulas(relative, reduction, dtype):
    cases = [
        dict(on=0.6, off=0.05, temperature=3.0, kl_weight=0.7, ce_weight=0.3),
        dict(on=1.0, off=0.0),
        dict(on=0.0, off=0.125, ce_weight=1.0, kl_weight=0.0),
        dict(on=0.2, off=0.1, normalize=True),
        dict(on=1.0, off=0.0, normalize=False),
    ]
    for seed, options in enumerate(cases):
        student, teacher = draw(12, 9, seed=seed, dtype=dtype), draw(12, 9, seed=seed + 10, dtype=dtype)
        target, confidence = labels(12, classes=9, seed=seed), draw(12, seed=5, dtype=dtype).sigmoid()
        target[2:4] = 4
        student[3, 2] = teacher[3, 4] = -inf
        teacher = teacher if seed == 3 else None
        confidence = confidence if seed == 4 else None
        settings = dict(dict(temperature=1.0, kl_weight=1.0, ce_weight=0.0, normalize=False), **options)
        ours = gradient(
            label_loss,
            student,
            target,
            teacher,
            confidence,
            relative=relative,
            ignore_index=4,
            reduction=reduction,
            dim=-1,
            **settings,
        )
        numpy = lambda tensor: None if tensor is None else tensor.double().numpy()  # noqa: E731
        truth = row_oracle.label_loss(
            numpy(student),
            target.numpy(),
            teacher=numpy(teacher),
            confidence=numpy(confidence),
            relative=relative,
            ignore_index=4,
            reduction=reduction,
            **settings,
        )
        for mine, name in zip(ours, ("loss", "grad_student")):
            estimate = truth[name]
            if mine.dim() == 0:
                estimate = row_oracle.Estimate(estimate.value[0], estimate.scale[0])
            row_oracle.close(mine.double().numpy(), row_oracle.Estimate(*map(np.asarray, estimate)), PRECISION[dtype])


LOSSES = {
    "virtual teacher": reference.virtual_teacher_loss,
    "label smoothing": reference.label_smoothing_loss,
    "teacher": lambda student, target, **o: reference.cwtm_loss(student, target, student.detach(), **o),
    "confidence": lambda student, target, **o: reference.cwtm_loss(
        student, target, confidence=student.detach()[:, 0].sigmoid(), **o
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_ignored_rows_are_harmless(loss):
    student, target = draw(4, 5, dtype=torch.float64), torch.tensor([1, 7, 2, 7])
    student[1] = nan
    for reduction in row_oracle.REDUCTIONS:
        ours, grad = gradient(loss, student, target, ignore_index=7, reduction=reduction)
        expected, expected_grad = gradient(loss, student[::2], target[::2], reduction=reduction)
        assert_same_formula(ours[::2] if reduction == "none" else ours, expected)
        assert_same_formula(grad[::2], expected_grad)
        assert (grad[1::2] == 0).all()
        ours, grad = gradient(loss, student, torch.full_like(target, 7), ignore_index=7, reduction=reduction)
        assert (ours == 0).all() and (grad == 0).all()
    assert loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_labels_out_of_range_make_their_row_nan_where_nothing_can_be_raised(loss):
    student, target = draw(3, 1, 5), torch.tensor([[1], [5], [-100]])
    # Inside vmap a label cannot be looked at.
    grad = torch.vmap(torch.func.grad(loss))(student, target)
    assert grad[1].isnan().all() and grad[0].isfinite().all() and (grad[2] == 0).all()


def test_a_term_of_weight_zero_is_silent():
    student, target = torch.tensor([[0.0, 1.0, -inf]], dtype=torch.float64), torch.tensor([2])  # both terms are infinite
    loss, grad = gradient(reference.virtual_teacher_loss, student, target, ce_weight=0, kl_weight=0)
    assert loss == 0 and (grad == 0).all()
    for name in ("ce_weight", "kl_weight"):
        loss, grad = gradient(reference.virtual_teacher_loss, student, target, **{name: 0})
        assert loss == inf and grad.isfinite().all()
    ce = reference.virtual_teacher_loss(student, torch.tensor([0]), kl_weight=0)
    assert_same_formula(ce, F.cross_entropy(student, torch.tensor([0])))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_derivatives_of_any_order(loss):
    target = torch.tensor([0, -100, 3])
    weights = draw(3, 4, seed=1, dtype=DOUBLE)
    if loss is LOSSES["teacher"]:
        loss = lambda student, target: reference.cwtm_loss(student, target, weights)  # noqa: E731
    if loss is LOSSES["confidence"]:
        loss = lambda student, target: reference.cwtm_loss(  # noqa: E731
            student, target, confidence=weights[:, 0].sigmoid()
        )
    student = draw(3, 4, scale=1.0, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(lambda student: loss(student, target), student)
    assert torch.autograd.gradgradcheck(lambda student: loss(student, target), student)
