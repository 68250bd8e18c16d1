"""The reference twin against torch's own functions and against the float64 NumPy formulas of row_oracle.py."""

import math

import numpy as np
import row_oracle
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw, labels

from kdkernels import reference

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
PRECISION = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def gradients(function, student, teacher, *rest, **options):
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = function(student, teacher, *rest, **options)
    loss.sum().backward()
    return loss.detach(), student.grad, teacher.grad


def test_forward_is_kl_div():
    student, teacher = draw(16, 10, dtype=torch.float64), draw(16, 10, seed=1, dtype=torch.float64)
    for temperature in (0.5, 1.0, 4.0):
        log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        for ours, theirs in (("batchmean", "batchmean"), ("sum", "sum"), ("mean", "batchmean")):
            expected = temperature**2 * F.kl_div(log_q, p, reduction=theirs)
            loss = reference.softened_kl(student, teacher, temperature=temperature, reduction=ours)
            assert_same_formula(loss, expected)
        loss = reference.softened_kl(student, teacher, temperature=temperature, reduction="elementmean")
        assert_same_formula(loss, expected / 10)
        rows = F.kl_div(log_q, p, reduction="none").sum(-1)
        loss = reference.softened_kl(
            student, teacher, temperature=temperature, reduction="none", scale_by_t2=False
        )
        assert_same_formula(loss, rows)


def test_soft_cross_entropy_is_cross_entropy_with_probabilities():
    student, p = draw(16, 10, dtype=torch.float64), draw(16, 10, seed=1, dtype=torch.float64).softmax(-1)
    loss = reference.soft_cross_entropy(student, p, temperature=3.0, teacher_kind="probs")
    assert_same_formula(loss, 9 * F.cross_entropy(student / 3, p))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_kd_loss_is_the_sum_of_two_terms(smoothing):
    student, teacher = draw(4, 10, 3, dtype=torch.float64), draw(4, 10, 3, seed=1, dtype=torch.float64)
    target = labels(4, 3, classes=10)
    target[0, 1] = target[2, 2] = -100
    ce = F.cross_entropy(student, target, label_smoothing=smoothing)
    kl = 16 * F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="sum") / 12
    loss, parts = reference.kd_loss(
        student,
        teacher,
        target,
        dim=1,
        ce_weight=0.3,
        kl_weight=2.0,
        label_smoothing=smoothing,
        return_parts=True,
    )
    assert_same_formula(loss, 0.3 * ce + 2 * kl)
    assert_same_formula(parts, {"ce": ce, "kl": kl})
    loss = reference.kd_loss(
        student, teacher, target, dim=1, label_smoothing=smoothing, reduction="elementmean"
    )
    assert_same_formula(loss, ce + kl / 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", row_oracle.REDUCTIONS)
@pytest.mark.parametrize("source", row_oracle.SOURCES)
@pytest.mark.parametrize("divergence", row_oracle.DIVERGENCES)
def test_formulas(divergence, source, reduction, dtype):
    for seed, (eps, beta) in enumerate([(0.0, 0.5), (1e-3, 0.2)]):
        student, teacher = draw(12, 9, seed=seed, dtype=dtype), draw(12, 9, seed=seed + 10, dtype=dtype)
        student[3, 4] = teacher[3, 4] = student[
            4, 0
        ] = -inf  # a class that neither has, one that the teacher has
        if divergence == "reverse":
            student[4, 0], teacher[4, 0] = teacher[4, 0], student[4, 0]
        if source != "logits":
            teacher = teacher.softmax(-1) if source == "probs" else teacher.log_softmax(-1)
        mask, weight = labels(12, classes=4) > 0, draw(12, seed=5, dtype=dtype).abs()
        mask[4] = (
            divergence in ("jsd", "tvd") and eps == 0
        )  # a finite divergence where one of the two has no such class
        temperature = draw(12, seed=6, dtype=dtype).abs() + 0.5
        options = dict(
            divergence=divergence, beta=beta, target_eps=eps, scale_by_t2=seed == 0, reduction=reduction
        )
        if eps:
            mask[3] = False  # there the smoothed teacher wants a class that the student excludes
        ours = gradients(
            reference.softened_kl,
            student,
            teacher,
            teacher_kind=source,
            temperature=temperature,
            mask=mask,
            row_weight=weight,
            **options,
        )
        truth = row_oracle.row_loss(
            student.numpy(),
            teacher.numpy(),
            source=source,
            mask=mask.numpy(),
            row_weight=weight.double().numpy(),
            row_temperature=temperature.double().numpy(),
            **options,
        )
        for mine, name in zip(ours, ("loss", "grad_student", "grad_teacher")):
            estimate = truth[name]
            if mine.dim() == 0:
                estimate = row_oracle.Estimate(estimate.value[0], estimate.scale[0])
            row_oracle.close(mine.double().numpy(), row_oracle.Estimate(*map(np.asarray, estimate)), PRECISION[dtype])


def test_impossible_classes():
    student, teacher = torch.tensor([[[0.0, 1.0, -inf]], [[1.0, 0.0, -inf]]], dtype=torch.float64)
    loss, *grads = gradients(reference.softened_kl, student, teacher)
    expected, *expected_grads = gradients(reference.softened_kl, student[:, :2], teacher[:, :2])
    assert_same_formula(loss, expected)
    for grad, reduced in zip(grads, expected_grads):  # a class that neither has changes nothing
        assert_same_formula(grad, F.pad(reduced, (0, 1)))

    teacher = torch.tensor([[1.0, 0.0, 0.0]])  # p > 0 where q = 0
    assert reference.softened_kl(student, teacher) == inf
    assert reference.soft_cross_entropy(student, teacher) == inf
    assert reference.softened_kl(student, teacher, divergence="reverse").isfinite()
    assert reference.softened_kl(teacher, student, divergence="reverse") == inf
    assert reference.softened_kl(student, teacher, divergence="jsd").isfinite()


def test_one_hot_probabilities():
    student = draw(1, 3, dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    _, _, grad_teacher = gradients(reference.softened_kl, student, teacher, teacher_kind="probs", divergence="tvd")
    assert (grad_teacher == torch.tensor([[0.0, 0.5, 0.0]])).all()
    for function in (reference.softened_kl, reference.soft_cross_entropy):
        loss, grad_student, grad_teacher = gradients(function, student, teacher, teacher_kind="probs")
        assert_same_formula(loss, -student.log_softmax(-1)[0, 1])
        assert_same_formula(grad_student, student.softmax(-1) - teacher)
        assert (grad_teacher[0, [0, 2]] == 0).all() and grad_teacher[0, 1].isfinite()


def compared(student, teacher, source="logits", **options):
    """A twin with gradients against the oracle, per row."""
    ours = gradients(reference.softened_kl, student, teacher, teacher_kind=source, reduction="none", **options)
    truth = row_oracle.row_loss(student.numpy(), teacher.numpy(), source=source, reduction="none", **options)
    for mine, name in zip(ours, ("loss", "grad_student", "grad_teacher")):
        row_oracle.close(mine.double().numpy(), truth[name], PRECISION[student.dtype])
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("source", row_oracle.SOURCES)
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_skewed(divergence, source, dtype):
    student, teacher = draw(12, 9, dtype=dtype), draw(12, 9, seed=1, dtype=dtype)
    student[3, 4] = teacher[3, 4] = student[4, 0] = teacher[5, 2] = -inf  # both, and either, exclude a class
    if source != "logits":
        teacher = teacher.softmax(-1) if source == "probs" else teacher.log_softmax(-1)
    for skew, eps in ((0.1, 0.0), (0.7, 0.0), (0.3, 1e-3)):
        loss, *_ = compared(student, teacher, source, divergence=divergence, skew=skew, target_eps=eps, temperature=2.0)
        # sum x log(x / m) <= sum x log(1 / skew)
        assert loss.isfinite().all() and (eps > 0 or (loss <= -4 * math.log(skew)).all())


def test_skewed_in_closed_form():
    """Two classes that exclude each other: all of one distribution, mixed into the other by the skew."""
    student, teacher = torch.tensor([[0.0, -inf]], dtype=torch.float64), torch.tensor([[-inf, 0.0]], dtype=torch.float64)
    for divergence in ("forward", "reverse"):
        loss = reference.softened_kl(student, teacher, divergence=divergence, skew=0.25)
        assert_same_formula(loss, torch.tensor(4.0, dtype=torch.float64).log())
        assert reference.softened_kl(student, teacher, divergence=divergence) == inf
    p, q = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    expected = {
        "forward": (p * (p / (0.1 * p + 0.9 * q)).log()).sum(),
        "reverse": (q * (q / (0.9 * p + 0.1 * q)).log()).sum(),
    }
    for divergence, value in expected.items():
        loss = reference.softened_kl(q.log()[None], p.log()[None], divergence=divergence, skew=0.1)
        assert_same_formula(loss, value)


def test_total_variation_in_closed_form():
    p, q = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    loss, grad_student, grad_teacher = gradients(reference.softened_kl, q.log(), p.log(), divergence="tvd")
    assert_same_formula(loss, torch.tensor(0.3, dtype=torch.float64))
    sign = torch.tensor([[0.5, 0.0, -0.5]], dtype=torch.float64)
    assert_same_formula(grad_student, q * (sign - (q * sign).sum()))
    assert_same_formula(grad_teacher, -p * (sign - (p * sign).sum()))
    _, _, grad_probs = gradients(reference.softened_kl, q.log() / 2, p, divergence="tvd", teacher_kind="probs")
    assert_same_formula(grad_probs, torch.sign(p - (q.log() / 2).softmax(-1)) / 2)
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    loss, *grads = gradients(reference.softened_kl, logits + 8, logits, divergence="tvd", temperature=2.0)
    assert loss == 0 and all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("divergence", row_oracle.DIVERGENCES)
def test_standardized(divergence, dtype):
    student, teacher = draw(12, 9, dtype=dtype), draw(12, 9, seed=1, dtype=dtype)
    student[3, 4] = teacher[3, 4] = -inf  # as if the class were not there
    for rows in (student[5:7], teacher[6:8]):
        rows[:] = 0.3
    loss, *grads = compared(student, teacher, divergence=divergence, standardize=True, temperature=2.0)
    if divergence != "cross_entropy":
        assert loss[6] == 0
    assert (grads[0][5:7] == 0).all() and (grads[1][6:8] == 0).all()
    # Neither the scale nor an offset of a row matters.
    other, *_ = compared(100 * student + 1e3, teacher, divergence=divergence, standardize=True, temperature=2.0)
    torch.testing.assert_close(other, loss, rtol=1e-3, atol=1e-4)
    without = [torch.cat((logits[:, :4], logits[:, 5:]), 1)[3:4] for logits in (student, teacher)]
    torch.testing.assert_close(compared(*without, divergence=divergence, standardize=True, temperature=2.0)[0], loss[3:4])


def test_standardized_is_the_expression_of_the_paper():
    student, teacher = draw(6, 10, dtype=torch.float64), draw(6, 10, seed=1, dtype=torch.float64)
    z, t = ((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-7) for x in (student, teacher))
    expected = 9 * F.kl_div(F.log_softmax(z / 3, -1), F.softmax(t / 3, -1), reduction="batchmean")
    assert_same_formula(reference.softened_kl(student, teacher, temperature=3.0, standardize=True), expected)


def test_one_class_standardized():
    loss, *grads = gradients(reference.softened_kl, draw(3, 1), draw(3, 1, seed=1), standardize=True)
    assert loss == 0 and all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("options", [{}, {"standardize": True}, {"divergence": "tvd"}], ids=str)
def test_shared_classes(options):
    student, teacher = draw(6, 9, dtype=torch.float64), draw(6, 12, seed=1, dtype=torch.float64)
    student[2, 8] = nan  # not among those that are compared
    for source in row_oracle.SOURCES[: 1 if "standardize" in options else 3]:
        given = {"logits": teacher, "probs": teacher.softmax(-1), "log_probs": teacher.log_softmax(-1)}[source]
        loss, *grads = compared(student, given, source, shared_classes=7, temperature=2.0, **options)
        narrow = gradients(
            reference.softened_kl,
            student[:, :7],
            given[:, :7],
            teacher_kind=source,
            temperature=2.0,
            reduction="none",
            **options,
        )
        assert_same_formula(loss, narrow[0])
        for grad, reduced in zip(grads, narrow[1:]):
            assert_same_formula(grad, F.pad(reduced, (0, grad.shape[1] - 7)))
    loss = reference.softened_kl(student, teacher, shared_classes=7, reduction="elementmean", **options)
    assert_same_formula(loss, reference.softened_kl(student, teacher, shared_classes=7, **options) / 7)


@pytest.mark.parametrize(
    "options",
    [{"divergence": "reverse", "skew": 0.2}, {"divergence": "jsd", "beta": 0.3}, {"divergence": "tvd"}, {"standardize": True}],
    ids=str,
)
def test_kd_loss_with_another_divergence(options):
    """The hard term sees all classes of the student, as they are."""
    student, teacher = draw(6, 9, dtype=torch.float64), draw(6, 7, seed=1, dtype=torch.float64)
    target = labels(6, classes=9)
    target[0] = 8
    loss, parts = reference.kd_loss(
        student, teacher, target, temperature=2.0, kl_weight=0.7, shared_classes=7, return_parts=True, **options
    )
    kl = reference.softened_kl(student[:, :7], teacher, temperature=2.0, **options)
    ce = F.cross_entropy(student, target)
    assert_same_formula(loss, ce + 0.7 * kl)
    assert_same_formula(parts, {"ce": ce, "kl": kl})


@pytest.mark.parametrize("bad", [[nan, 0.0, 1.0], [inf, 0.0, 1.0], [-inf, -inf, -inf]], ids=str)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("divergence", row_oracle.DIVERGENCES)
def test_broken_rows(divergence, standardize, bad):
    good, broken = draw(2, 3), draw(2, 3, seed=1)
    broken[1] = torch.tensor(bad)
    for student, teacher in ((good, broken), (broken, good)):
        options = dict(divergence=divergence, standardize=standardize)
        loss, *grads = gradients(reference.softened_kl, student, teacher, reduction="none", **options)
        assert loss[0].isfinite() and loss[1].isnan()
        assert grads[0][0].isfinite().all() and grads[0][1].isnan().all()
        options["mask"] = torch.tensor([True, False])
        for reduction in ("none", "sum", "batchmean"):
            loss, *grads = gradients(reference.softened_kl, student, teacher, reduction=reduction, **options)
            assert loss.isfinite().all()
            for grad in grads:
                assert grad[0].isfinite().all() and (grad[1] == 0).all()


def test_nothing_counted():
    student, teacher = torch.full((2, 3), nan), torch.full((2, 3), nan)
    none = torch.zeros(2, dtype=torch.bool)
    for reduction in ("none", "sum", "batchmean", "elementmean"):
        weight = torch.full((2,), nan)
        temperature = torch.full((2,), -1.0)
        options = dict(reduction=reduction, mask=none, row_weight=weight, temperature=temperature)
        for ours in (
            gradients(reference.softened_kl, student, teacher, **options),
            gradients(reference.kd_loss, student, teacher, torch.tensor([-100, -100]), **options),
        ):
            assert all((tensor == 0).all() for tensor in ours)
    assert reference.softened_kl(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


def test_a_term_of_weight_zero_is_silent():
    student = torch.tensor([[0.0, 1.0, -inf]], dtype=torch.float64)
    teacher, target = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([2])  # both terms are infinite
    possible = torch.tensor([0])
    ce, grad, _ = gradients(reference.kd_loss, student, teacher, possible, kl_weight=0)
    assert_same_formula(ce, F.cross_entropy(student, possible))
    assert grad.isfinite().all()
    loss, *grads = gradients(reference.kd_loss, student, teacher, target, kl_weight=0, ce_weight=0)
    assert loss == 0 and all((grad == 0).all() for grad in grads)
    kl, grad, _ = gradients(reference.kd_loss, student, teacher[:, [0, 1, 2]] + student, target, ce_weight=0)
    assert kl.isfinite() and grad.isfinite().all()


def test_nearly_equal_distributions_keep_their_value():
    """A Jensen-Shannon divergence of 1e-12 comes from terms of 1e-6 that cancel class by class."""
    student = draw(1, 50, dtype=torch.float64)
    for size in (1e-3, 1e-6):
        step = size * draw(1, 50, seed=1, scale=1.0, dtype=torch.float64)
        q = student.softmax(-1)
        variance = (q * step**2).sum() - (q * step).sum() ** 2
        for beta in (0.5, 0.1):
            loss = reference.softened_kl(student, student + step, divergence="jsd", beta=beta)
            torch.testing.assert_close(loss, beta * (1 - beta) / 2 * variance, rtol=10 * size, atol=0)


def test_half_precision_is_computed_in_float32():
    student, teacher = (draw(8, 100, seed=seed, dtype=torch.float16) for seed in (0, 1))
    loss, grad, _ = gradients(reference.softened_kl, student, teacher, temperature=2.0)
    expected, expected_grad, _ = gradients(
        reference.softened_kl, student.float(), teacher.float(), temperature=2.0
    )
    assert loss == expected and torch.equal(grad, expected_grad.half())


def test_large_logits_are_exact():
    """A common offset of 1e4 changes nothing: rows are shifted before anything is divided."""
    student, teacher = (torch.tensor([values]) for values in ([0.0, 1.0, 3.0], [2.0, 0.0, 1.0]))
    for temperature in (0.1, 3.0, 100.0):
        expected = gradients(reference.softened_kl, student, teacher, temperature=temperature)
        shifted = gradients(reference.softened_kl, student + 1e4, teacher - 1e4, temperature=temperature)
        assert all(torch.equal(a, b) for a, b in zip(shifted, expected))


@pytest.mark.parametrize("more", [{}, {"skew": 0.3}, {"standardize": True}], ids=str)
@pytest.mark.parametrize("divergence", row_oracle.DIVERGENCES)
def test_derivatives_of_any_order(divergence, more):
    if "skew" in more and divergence not in ("forward", "reverse"):
        pytest.skip("no skew")
    student, teacher = (
        draw(3, 4, scale=1.0, dtype=torch.float64),
        draw(3, 4, seed=1, scale=1.0, dtype=torch.float64),
    )

    def loss(student, teacher):
        return reference.softened_kl(
            student, teacher, temperature=2.0, divergence=divergence, reduction="none", **more
        )

    inputs = (student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
    if divergence != "tvd":  # which has a kink there
        student.data[0] = teacher.data[0]  # equal rows meet the branches of the mixture
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_second_derivatives_of_constant_rows_are_0():
    student, teacher = (draw(3, 4, seed=seed, dtype=torch.float64) for seed in (0, 1))
    student[0] = teacher[1] = 2.5
    student.requires_grad_(), teacher.requires_grad_()
    loss = reference.softened_kl(student, teacher, standardize=True)
    first = torch.autograd.grad(loss, (student, teacher), create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), (student, teacher))
    for grads in (first, second):
        assert all(grad.isfinite().all() for grad in grads)
        assert (grads[0][0] == 0).all() and (grads[1][1] == 0).all() and (grads[0][2] != 0).any()


def test_labels_out_of_range_make_their_row_nan_where_nothing_can_be_raised():
    student, teacher = draw(3, 5), draw(3, 5, seed=1)
    target = torch.tensor([1, 5, -100])
    # Inside vmap a label cannot be looked at.
    grad = torch.vmap(torch.func.grad(reference.kd_loss))(student, teacher, target)
    assert grad[1].isnan().all() and grad[0].isfinite().all() and grad[2].isfinite().all()
