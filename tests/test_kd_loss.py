"""kd_loss beyond the plain sum of its terms: probabilities as target, and rows that drop out of both terms."""

import re
from math import nan

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOATS, assert_accurate, assert_same_formula, double, draw, labels

import kdkernels as kd

pytestmark = pytest.mark.numeric

DOUBLE = torch.float64
ROWS, CLASSES = 6, 5
STUDENT, TEACHER = (draw(ROWS, CLASSES, seed=seed, dtype=DOUBLE) for seed in (0, 1))
PROBABILITIES = draw(ROWS, CLASSES, seed=2, dtype=DOUBLE).softmax(-1)
TARGET, MASK = labels(ROWS, classes=CLASSES), labels(ROWS, classes=2, seed=1) > 0
TARGET[1] = TARGET[4] = -100
WEIGHT = draw(ROWS, seed=3, dtype=DOUBLE).abs()
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def evaluate(student, teacher, target, **options):
    """Loss, parts and gradients by student and teacher."""
    leaves = [logits.detach().requires_grad_() for logits in (student, teacher)]
    loss, parts = kd.kd_loss(*leaves, target, return_parts=True, **options)
    upstream = torch.arange(1, 1 + loss.numel(), dtype=loss.dtype, device=loss.device).view(loss.shape)
    return loss.detach(), parts["ce"], parts["kl"], *torch.autograd.grad(loss, leaves, upstream)


# Probabilities


@BACKENDS
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape, dim", [((ROWS, CLASSES), -1), ((2, CLASSES, 3, 4), 1), ((CLASSES,), 0)])
def test_probabilities_are_those_of_torch(backend, shape, dim, reduction, smoothing):
    student, teacher = (draw(*shape, seed=seed, dtype=DOUBLE) for seed in (0, 1))
    target = 3 * draw(*shape, seed=2, dtype=DOUBLE).softmax(dim)  # of any sum
    options = {"reduction": reduction, "label_smoothing": smoothing}
    with kd.backend(backend):
        loss, ce, _, gradient, _ = evaluate(student, teacher, target, kl_weight=0, ignore_index=0, dim=dim, **options)
    leaf = student.clone().requires_grad_()
    expected = F.cross_entropy(leaf, target, **options)
    upstream = torch.arange(1, 1 + loss.numel(), dtype=DOUBLE).view(loss.shape)
    (by_student,) = torch.autograd.grad(expected, leaf, upstream)
    assert_same_formula((loss, ce, gradient), (expected.detach(), expected.detach(), by_student))


@BACKENDS
@pytest.mark.parametrize("reduction", ["batchmean", "elementmean", "sum", "none"])
def test_certain_probabilities_are_labels(backend, reduction):
    target = TARGET.clamp(min=0)
    options = dict(mask=MASK, row_weight=WEIGHT, label_smoothing=0.1, ce_weight=0.3, reduction=reduction)
    with kd.backend(backend):
        ours = evaluate(STUDENT, TEACHER, F.one_hot(target, CLASSES).double(), **options)
        assert_same_formula(ours, evaluate(STUDENT, TEACHER, target, **options))


@pytest.mark.parametrize("target_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_probabilities_of_every_dtype(device, dtype, target_dtype):
    student, teacher = (x.to(device, dtype) for x in (STUDENT, TEACHER))
    target = PROBABILITIES.to(device, target_dtype)
    options = dict(denominator=7.0, reduction="elementmean", label_smoothing=0.1)

    def twin():
        with kd.backend("reference"):
            return evaluate(double(student), double(teacher), double(target), **options)

    assert_accurate(evaluate(student, teacher, target, **options), twin)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradient_of_the_probabilities(smoothing):
    target = PROBABILITIES.clone()
    target[0] = F.one_hot(torch.tensor(2), CLASSES)
    leaf = target.clone().requires_grad_()
    ours = torch.autograd.grad(kd.kd_loss(STUDENT, TEACHER, leaf, label_smoothing=smoothing, ce_weight=0.5), leaf)
    expected = torch.autograd.grad(0.5 * F.cross_entropy(STUDENT, leaf, label_smoothing=smoothing), leaf)
    assert_same_formula(ours, expected)
    inputs = [x.clone().requires_grad_() for x in (STUDENT, TEACHER, target)]
    assert torch.autograd.gradcheck(kd.kd_loss, inputs)
    assert torch.autograd.gradgradcheck(kd.kd_loss, inputs)


@BACKENDS
def test_an_excluded_class_of_probability_0(backend):
    student, target = STUDENT.clone(), PROBABILITIES.clone()
    student[:, 1], target[:, 1] = -torch.inf, 0
    with kd.backend(backend):
        found = evaluate(student, STUDENT, target, kl_weight=0)
    rest = [0, 2, 3, 4]
    leaf = student[:, rest].requires_grad_()
    expected = F.cross_entropy(leaf, target[:, rest])
    assert_same_formula(found[0], expected.detach())
    assert_same_formula(found[3][:, rest], *torch.autograd.grad(expected, leaf))
    assert not found[3][:, 1].any()


def test_labels_with_a_dimension_of_classes():
    student, teacher = (draw(2, CLASSES, 3, 4, seed=seed) for seed in (0, 1))
    target = labels(2, 1, 3, 4, classes=CLASSES)
    ours = kd.kd_loss(student, teacher, target, dim=1)
    assert ours == kd.kd_loss(student, teacher, target.squeeze(1), dim=1)
    message = (
        "kd_loss: target of floats holds probabilities of classes and must have the shape of student, [2, 5, 3, 4], "
        "got [2, 1, 3, 4]; convert class labels with target.long()"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        kd.kd_loss(student, teacher, target.float(), dim=1)


def test_bad_probabilities():
    with pytest.raises(TypeError, match="^kd_loss: target must be float32, float16, bfloat16 or float64, got float8_e4m3fn$"):
        kd.kd_loss(STUDENT, TEACHER, PROBABILITIES.to(torch.float8_e4m3fn))
    message = "kd_loss: mask_ignored=True needs labels, of which some may be ignored, got a target of floats; use mask"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kd.kd_loss(STUDENT, TEACHER, PROBABILITIES, mask_ignored=True)


@BACKENDS
def test_mapped_probabilities(backend):
    targets = torch.stack([PROBABILITIES, PROBABILITIES.flip(0)])

    def results(target):
        return torch.func.grad_and_value(kd.kd_loss)(STUDENT, TEACHER, target)

    with kd.backend(backend):
        expected = tuple(map(torch.stack, zip(*map(results, targets))))
        assert_same_formula(torch.vmap(results)(targets), expected)


def test_probabilities_in_a_graph():
    def loss(student):
        return kd.kd_loss(student, TEACHER, PROBABILITIES)

    leaf = STUDENT.clone().requires_grad_()
    ours, expected = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf), loss(leaf)
    assert_same_formula(ours, expected)
    assert_same_formula(torch.autograd.grad(ours, leaf), torch.autograd.grad(expected, leaf))


@pytest.mark.parametrize("target", [PROBABILITIES, TARGET], ids=["probabilities", "labels"])
def test_second_derivatives(target):
    def penalty(backend):
        leaf = STUDENT.clone().requires_grad_()
        with kd.backend(backend):
            loss = kd.kd_loss(leaf, TEACHER, target, mask=MASK, mask_ignored=target is TARGET, denominator=3.0)
            (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
            return torch.autograd.grad(first.square().sum(), leaf)

    assert_same_formula(penalty("cpu"), penalty("reference"))


# Ignored rows


@BACKENDS
@pytest.mark.parametrize("mask", [None, MASK], ids=["alone", "and a mask"])
@pytest.mark.parametrize("options", [{}, {"row_weight": WEIGHT}, {"denominator": 9.0}, {"ignore_index": 2}], ids=str)
@pytest.mark.parametrize("reduction", ["batchmean", "elementmean", "sum", "none"])
def test_ignored_rows_drop_out_of_both_terms(backend, reduction, options, mask):
    if "denominator" in options and reduction in ("sum", "none"):
        return
    target = torch.where(TARGET < 0, options.get("ignore_index", -100), TARGET)
    labelled = target != options.get("ignore_index", -100)
    options = {**options, "reduction": reduction}
    with kd.backend(backend):
        ours = evaluate(STUDENT, TEACHER, target, mask=mask, mask_ignored=True, **options)
        both = labelled if mask is None else labelled & mask
        assert_same_formula(ours, evaluate(STUDENT, TEACHER, target, mask=both, **options))


@BACKENDS
def test_ignored_rows_may_hold_anything(backend):
    student, teacher = STUDENT.clone(), TEACHER.clone()
    student[1], teacher[4] = torch.nan, torch.nan
    with kd.backend(backend):
        ours = evaluate(student, teacher, TARGET, mask_ignored=True)
        assert_same_formula(ours, evaluate(STUDENT, TEACHER, TARGET, mask_ignored=True))
        nothing = evaluate(student, teacher, torch.full_like(TARGET, -100), mask_ignored=True)
    assert not any(each.any() for each in nothing)


@BACKENDS
def test_learned_weights_of_labelled_rows(backend):
    def by_weight(**options):
        weight = WEIGHT.clone().requires_grad_()
        loss = kd.kd_loss(STUDENT, TEACHER, TARGET, row_weight=weight, **options)
        return torch.autograd.grad(loss, weight)

    with kd.backend(backend):
        assert_same_formula(by_weight(mask=MASK, mask_ignored=True), by_weight(mask=MASK & (TARGET >= 0)))


@BACKENDS
def test_mapped_labels(backend):
    targets = torch.stack([TARGET, TARGET.flip(0)])

    def results(target):
        return torch.func.grad_and_value(lambda z: kd.kd_loss(z, TEACHER, target, mask_ignored=True))(STUDENT)

    with kd.backend(backend):
        expected = tuple(map(torch.stack, zip(*map(results, targets))))
        assert_same_formula(torch.vmap(results)(targets), expected)


@pytest.mark.parametrize("learned", [False, True])
def test_standardized_rows_that_do_not_count_have_no_gradient(learned):
    student = torch.tensor([[1.0, 2, 3], [nan, nan, nan]], requires_grad=True)
    teacher = torch.tensor([[3.0, 1, 2], [0, 0, 0]], requires_grad=True)
    weight = torch.ones(2, requires_grad=learned)
    loss = kd.kd_loss(
        student, teacher, torch.tensor([0, -100]), standardize=True, mask_ignored=True, row_weight=weight
    )
    for gradient in torch.autograd.grad(loss, (student, teacher)):
        assert gradient[0].abs().sum() > 0 and gradient[1].eq(0).all()


def test_a_standardized_term_of_weight_0_has_no_gradient():
    student = torch.tensor([[1.0, 2, 3], [1, 2, 3]], requires_grad=True)
    teacher = torch.tensor([[3.0, 1, 2], [nan, 0, 0]], requires_grad=True)
    loss = kd.kd_loss(student, teacher, torch.tensor([0, 1]), kl_weight=0.0, standardize=True)
    by_student, by_teacher = torch.autograd.grad(loss, (student, teacher))
    assert torch.isfinite(by_student).all() and by_teacher.eq(0).all()


def test_an_ignore_index_beyond_int64():
    logits = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"ignore_index must fit into int64, got 9223372036854775808"):
        kd.kd_loss(logits, logits, torch.tensor([0, 1]), ignore_index=2**63)
