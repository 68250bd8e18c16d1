"""The twin of dynamic_temperature_kl against torch's own functions and the float64 formulas of row_oracle.py."""

import functools
import itertools
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
DOUBLE = torch.float64
dynamic_temperature_kl = reference.dynamic_temperature_kl


def problem(rows=12, classes=9, dtype=DOUBLE):
    """Logits, labels of which a third are the teacher's choice, and one that is ignored."""
    student, teacher = draw(rows, classes, dtype=dtype), draw(rows, classes, seed=1, dtype=dtype)
    target = labels(rows, classes=classes)
    target[::3] = teacher.argmax(-1)[::3]
    target[1] = -100
    return student, teacher, target


def temperatures(*tensors, **options):
    return dynamic_temperature_kl(*tensors, return_parts=True, **options)[1]["temperature"]


# Temperatures


def test_flsw_is_the_cosine_of_raw_logits():
    student, teacher, target = problem()
    cosine = F.cosine_similarity(student, teacher, -1)
    for gamma in (1.0, 0.5, 2.0):
        w = (1 - cosine) ** gamma
        ours = temperatures(student, teacher, target, gamma=gamma, beta=1.5)
        # 1e-4 is added to lengths of about 10.
        torch.testing.assert_close(ours, 4 + (w.mean() - w) * 1.5, rtol=1e-4, atol=0)
        assert_same_formula(ours.mean(), torch.tensor(4.0, dtype=DOUBLE))
    assert (temperatures(student, teacher, target, gamma=0.0) == 4).all()


def test_flsw_at_its_ends():
    rows = draw(3, 50, dtype=torch.float32)
    rows[1] = 0
    target = torch.zeros(3, dtype=torch.int64)

    def w(student, teacher, **options):
        return 10 - temperatures(student, teacher, target, temperature=10.0, **options)

    # equal (w = 0), nothing (w = 1), and opposite (w = 2^gamma): differences from the mean of the three
    equal = w(rows, rows)
    torch.testing.assert_close(equal, torch.tensor([-1.0, 2.0, -1.0]) / 3, rtol=1e-4, atol=1e-4)
    opposite = w(rows, -rows, gamma=3.0)
    torch.testing.assert_close(opposite, torch.tensor([7.0, -14.0, 7.0]) / 3, rtol=1e-3, atol=1e-3)
    # Beyond 1 by rounding: a power of a negative number would be NaN.
    big = draw(64, 10, scale=1e6)
    assert temperatures(big, big, torch.zeros(64, dtype=torch.int64), gamma=0.5).isfinite().all()


def test_cwsm_is_the_inverse_of_the_students_confidence():
    student, teacher, target = problem()
    w = 1 / (student.softmax(-1).amax(-1) + 1e-3)
    assert_same_formula(temperatures(student, teacher, target, mode="cwsm", beta=0.3), 4 + (w.mean() - w) * 0.3)
    uniform = torch.zeros(2, 100, dtype=DOUBLE)
    uniform[0, 0] = 1e3
    ours = temperatures(uniform, uniform, torch.zeros(2, dtype=torch.int64), mode="cwsm", beta=0.01)
    assert_same_formula(ours[0] - ours[1], torch.tensor(0.01 * (100 / 1.1 - 1 / 1.001), dtype=DOUBLE))


@pytest.mark.parametrize("mode", ["flsw", "cwsm"])
def test_l1_divides_by_the_sum(mode):
    student, teacher, target = problem()
    gaps = temperatures(student, teacher, target, mode=mode, beta=0.1, t_min=None) - 4
    ours = temperatures(student, teacher, target, mode=mode, beta=1.0, t_min=None, normalize="l1") - 4
    assert_same_formula(ours * gaps.norm() / ours.norm(), gaps)
    w = 1 / (student.softmax(-1).amax(-1) + 1e-3)
    if mode == "cwsm":
        assert_same_formula(ours, (w.mean() - w) / w.sum())


def test_l1_with_nothing_to_divide_by():
    equal, target = torch.full((3, 4), 1e9), torch.zeros(3, dtype=torch.int64)  # w is 0 in every row
    assert (temperatures(equal, equal, target, normalize="l1", beta=50.0) == 4).all()
    assert temperatures(equal[:0], equal[:0], target[:0], normalize="l1").shape == (0,)


def test_clamp():
    student, teacher, target = problem()
    free = temperatures(student, teacher, target, mode="cwsm", beta=4.0, t_min=None)
    assert free.min() < 0
    for t_min in (0.25, 1.0, 3.0):
        ours = temperatures(student, teacher, target, mode="cwsm", beta=4.0, t_min=t_min)
        assert torch.equal(ours, free.clamp(min=t_min))
    rows = dynamic_temperature_kl(
        student, teacher, target, mode="cwsm", beta=4.0, t_min=None, reduction="none"
    )
    assert torch.equal(rows.isnan(), free <= 0)
    # A constant temperature is what was asked for.
    assert (temperatures(student, teacher, target, mode="const", temperature=0.5) == 0.5).all()


def test_hidden_rows_do_not_count():
    student, teacher, target = problem()
    mask = labels(12, classes=2, seed=3) > 0
    expected = temperatures(student[mask], teacher[mask], target[mask])
    student[~mask], teacher[~mask] = nan, inf
    student.requires_grad_()
    loss, parts = dynamic_temperature_kl(student, teacher, target, mask=mask, return_parts=True)
    assert_same_formula(parts["temperature"][mask], expected)
    assert (parts["temperature"][~mask] == 4).all()
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and (student.grad[~mask] == 0).all()
    none = dynamic_temperature_kl(student, teacher, target, mask=torch.zeros_like(mask), normalize="l1")
    assert none == 0


def test_one_row_has_the_temperature_of_the_batch():
    student, teacher = draw(5, dtype=DOUBLE), draw(5, seed=1, dtype=DOUBLE)
    target = torch.tensor(2)
    assert temperatures(student, teacher, target, beta=3.0) == 4
    float32 = dynamic_temperature_kl(student.float(), teacher.float(), target, return_parts=True)
    assert float32[0].dtype is float32[1]["temperature"].dtype is torch.float32


# Targets


def test_beta_zero_and_const_are_softened_kl():
    student, teacher, target = problem()
    expected = reference.softened_kl(student, teacher, temperature=4.0)
    ce = F.cross_entropy(student, target)
    for options in (dict(mode="const"), dict(beta=0.0), dict(mode="cwsm", beta=0.0)):
        assert_same_formula(dynamic_temperature_kl(student, teacher, target, **options), expected)
        loss, parts = dynamic_temperature_kl(
            student, teacher, target, ce_weight=0.3, return_parts=True, **options
        )
        assert_same_formula(loss, expected + 0.3 * ce)
        assert_same_formula(parts, {"kl": expected, "ce": ce, "temperature": torch.full((12,), 4.0, dtype=DOUBLE)})
    by_class = dict(mode="const", ce_weight=1.0, reduction="elementmean")
    assert_same_formula(dynamic_temperature_kl(student, teacher, target, **by_class), expected / 9 + ce)
    plain = dynamic_temperature_kl(student, teacher, target, mode="const", scale_by_t2=False)
    assert_same_formula(plain, expected / 16)


def test_a_teacher_that_is_right_is_not_adjusted():
    student, teacher, _ = problem()
    target = teacher.argmax(-1)
    target[4] = -100
    for mode in ("flsw", "cwsm", "const"):
        losses = [
            dynamic_temperature_kl(student, teacher, target, mode=mode, adjust=adjust)
            for adjust in ("none", "ps", "lsr")
        ]
        assert losses[0] == losses[1] == losses[2]


def test_ps_exchanges_two_logits_and_looks_at_them():
    student = torch.tensor([[1.0, 2.0, 0.5]], dtype=DOUBLE).repeat(3, 1)
    teacher = torch.tensor([[0.0, 3.0, 1.0], [3.0, 1.0, 3.0], [0.0, 3.0, 1.0]], dtype=DOUBLE)
    target = torch.tensor([2, 2, -100])  # wrong; a tie, the first being the maximum: nothing to see; ignored
    shifted = torch.tensor([[0.0, 1.0, 3.0], [3.0, 1.0, 3.0], [0.0, 3.0, 1.0]], dtype=DOUBLE)
    kept = teacher.clone()
    for mode in ("const", "flsw", "cwsm"):
        ours = dynamic_temperature_kl(
            student, teacher, target, mode=mode, adjust="ps", reduction="none", return_parts=True
        )
        assert_same_formula(ours[0], dynamic_temperature_kl(student, shifted, target, mode=mode, reduction="none"))
        assert_same_formula(ours[1]["temperature"], temperatures(student, shifted, target, mode=mode))
    assert torch.equal(teacher, kept)


def test_lsr_replaces_the_row():
    student = torch.tensor([[1.0, 2.0, 0.5]], dtype=DOUBLE).repeat(3, 1)
    teacher = torch.tensor([[0.0, 3.0, 1.0], [3.0, 1.0, 3.0], [0.0, 3.0, 1.0]], dtype=DOUBLE)
    target = torch.tensor([2, 2, -100])  # wrong; a tie, the second being the label: replaced; ignored
    u = torch.tensor([0.1, 0.1, 0.8], dtype=DOUBLE)
    for mode in ("const", "flsw"):
        options = dict(mode=mode, smoothing=0.3, beta=2.0)
        rows = dynamic_temperature_kl(student, teacher, target, adjust="lsr", reduction="none", **options)
        plain, parts = dynamic_temperature_kl(
            student, teacher, target, reduction="none", return_parts=True, **options
        )
        log_q = (student / parts["temperature"][:, None]).log_softmax(-1)
        expected = parts["temperature"] ** 2 * (u * (u.log() - log_q)).sum(-1)
        assert_same_formula(rows, torch.stack((expected[0], expected[1], plain[2])))
    one_hot = dynamic_temperature_kl(student, teacher, target, adjust="lsr", smoothing=0.0)
    assert one_hot.isfinite()


def test_only_the_softened_student_is_differentiated():
    """T_i (softmax(student_i / T_i) - A_i) / B."""
    student, teacher, target = problem()
    student.requires_grad_(), teacher.requires_grad_()
    loss, parts = dynamic_temperature_kl(student, teacher, target, beta=2.0, return_parts=True)
    loss.backward()
    t = parts["temperature"][:, None]
    assert_same_formula(student.grad, t * ((student / t).softmax(-1) - (teacher / t).softmax(-1)).detach() / 12)
    assert teacher.grad is None
    assert not any(part.requires_grad for part in parts.values())


OPTIONS = [
    dict(mode="const", adjust="lsr", ce_weight=0.5),
    dict(mode="flsw", adjust="none", gamma=0.5, scale_by_t2=False),
    dict(mode="flsw", adjust="ps", beta=2.0, ce_weight=0.3),
    dict(mode="flsw", adjust="lsr", l1=True, beta=20.0, smoothing=0.3),
    dict(mode="cwsm", adjust="ps", l1=True, beta=10.0),
    dict(mode="cwsm", adjust="lsr", beta=0.5, t_min=2.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", row_oracle.REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_formulas(options, reduction, dtype):
    student, teacher, target = problem(dtype=dtype)
    mask, weight = labels(12, classes=4) > 0, draw(12, seed=5, dtype=dtype).abs()
    student.requires_grad_()
    shared = dict(reduction=reduction, **{name: value for name, value in options.items() if name != "l1"})
    loss, parts = dynamic_temperature_kl(
        student,
        teacher,
        target,
        mask=mask,
        row_weight=weight,
        normalize="l1" if options.get("l1") else None,
        return_parts=True,
        **{"t_min": None, **shared},
    )
    loss.sum().backward()
    tensors = (student.detach().double().numpy(), teacher.double().numpy(), target.numpy())
    rows = dict(mask=mask.numpy(), row_weight=weight.double().numpy())
    expected = row_oracle.dynamic_temperature_kl(*tensors, l1=options.get("l1", False), **rows, **shared)
    found = parts["temperature"].double().numpy()
    np.testing.assert_allclose(found, expected["row_temperature"], rtol=64 * PRECISION[dtype])
    # A rounding error of a temperature is none of the loss at that temperature.
    truth = row_oracle.dynamic_temperature_kl(*tensors, row_temperature=found, **rows, **shared)
    both = torch.stack((parts["kl"], parts["ce"]))
    for mine, name in ((loss.detach(), "loss"), (both, "parts"), (student.grad, "grad_student")):
        estimate = truth[name]
        if reduction != "none" and name != "grad_student":
            estimate = row_oracle.Estimate(*(x[..., 0] for x in estimate))
        row_oracle.close(mine.double().numpy(), row_oracle.Estimate(*map(np.asarray, estimate)), PRECISION[dtype])


# Edges


def test_labels_out_of_range_make_their_row_nan_where_nothing_can_be_raised():
    student, teacher, target = draw(3, 1, 5), draw(3, 1, 5, seed=1), torch.tensor([[1], [5], [-100]])
    for options in (dict(adjust="ps"), dict(adjust="lsr"), dict(ce_weight=1.0)):
        # Inside vmap a label cannot be looked at.
        loss = functools.partial(dynamic_temperature_kl, **options)
        grad = torch.vmap(torch.func.grad(loss))(student, teacher, target)
        assert grad[1].isnan().all() and grad[0].isfinite().all() and grad[2].isfinite().all()
    grad = torch.vmap(torch.func.grad(dynamic_temperature_kl))(student, teacher, target)
    assert grad.isfinite().all()  # nothing depends on the label


def test_no_rows():
    empty = torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    for mode, adjust in itertools.product(("const", "flsw", "cwsm"), ("none", "ps", "lsr")):
        assert dynamic_temperature_kl(*empty, mode=mode, adjust=adjust) == 0


@pytest.mark.parametrize("adjust", ["none", "ps", "lsr"])
def test_derivatives_of_any_order(adjust):
    """Of the loss at its temperatures, which are constants: a finite difference sees them move."""
    student, teacher = (draw(3, 4, seed=seed, scale=1.0, dtype=DOUBLE) for seed in (0, 1))
    target = torch.tensor([0, -100, 2])

    def loss(student):
        return dynamic_temperature_kl(
            student, teacher, target, mode="const", adjust=adjust, ce_weight=0.5, reduction="none"
        )

    assert torch.autograd.gradcheck(loss, student.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, student)
