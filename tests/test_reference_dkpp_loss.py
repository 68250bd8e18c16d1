"""The twin of dkpp_loss, and the permutation it shares with the kernels: exact, uniform, reproducible."""

import itertools
import math

import numpy as np
import row_oracle
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw, labels

from kdkernels import reference
from kdkernels._shared import permutation
from kdkernels._shared.permutation import random_permutation

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
SEEDS = (0, 1, 2**32 - 1, 2**32, 123456789012345678, 2**63 - 1)
DOUBLE = torch.float64


# The permutation


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 10, 100, 1001])
def test_each_row_is_a_permutation_that_keeps_one_class(classes):
    kept = labels(6, 5, classes=classes)
    for seed in SEEDS:
        drawn = random_permutation(kept, classes, seed)
        assert drawn.shape == (6, 5, classes) and drawn.dtype is torch.int64
        assert (drawn.sort().values == torch.arange(classes)).all()
        assert torch.equal(drawn.gather(-1, kept.unsqueeze(-1)).squeeze(-1), kept)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 17, 100])
def test_every_class_finds_its_place_by_itself(classes):
    """Bit for bit what Python's unlimited integers give for one class after the other."""
    kept = labels(4, classes=classes)
    for seed in SEEDS:
        expected = torch.from_numpy(row_oracle.random_permutation(kept.tolist(), classes, seed))
        assert torch.equal(random_permutation(kept, classes, seed), expected)
        assert torch.equal(random_permutation(kept, classes, torch.tensor(seed)), expected)


def test_it_depends_on_seed_and_row_alone():
    kept = torch.zeros(64, dtype=torch.int64)
    drawn = [random_permutation(kept, 20, seed) for seed in SEEDS]
    for one, other in itertools.combinations(drawn, 2):
        assert (one != other).any(-1).all()
    assert len({tuple(row) for row in drawn[0].tolist()}) == 64
    assert torch.equal(random_permutation(kept.view(8, 8), 20, SEEDS[0]).flatten(0, 1), drawn[0])
    # The others trade places among themselves whichever class is kept.
    moved = random_permutation(kept + 19, 20, SEEDS[0])
    assert torch.equal(moved[:, :19] + 1, drawn[0][:, 1:])


def excess(counts):
    """How far chi-square against equal counts lies above its mean, in standard deviations of a normal number
    (Wilson, Hilferty 1931). Above 4 once in 30,000 tests."""
    expected = counts.sum() / counts.numel()
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    spread = 2 / (9 * freedom)
    return ((chi2 / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)


def orders(count, seed, rows=20000):
    """How often each order of so many indices occurs."""
    drawn = random_permutation(torch.full((rows,), count), count + 1, seed)[:, :count]
    code = (drawn * count ** torch.arange(count)).sum(-1)
    found = torch.zeros(count**count).index_add(0, code, torch.ones(rows))
    possible = torch.tensor(list(itertools.permutations(range(count))))
    return found[(possible * count ** torch.arange(count)).sum(-1)]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_order_is_equally_likely(count):
    for seed in SEEDS:
        assert excess(orders(count, seed)) < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_nine_classes_go_everywhere_and_in_pairs(seed):
    drawn = random_permutation(torch.full((40000,), 9), 10, seed)[:, :9]
    for c in range(9):
        assert excess(drawn[:, c].bincount(minlength=9).double()) < 4
    for one, other in ((0, 1), (0, 8), (3, 4), (7, 2)):
        pairs = (9 * drawn[:, one] + drawn[:, other]).bincount(minlength=81).view(9, 9).double()
        assert (pairs.diagonal() == 0).all()
        assert excess(pairs[~torch.eye(9, dtype=torch.bool)]) < 4


def test_successive_rows_and_seeds_are_independent():
    kept = torch.full((40000,), 9)
    drawn, next_seed = random_permutation(kept, 10, 7)[:, 0], random_permutation(kept, 10, 8)[:, 0]
    for other in (drawn.roll(1), drawn.roll(256), next_seed):
        assert excess((9 * drawn + other).bincount(minlength=81).double()) < 4


def test_too_few_rounds_are_seen(monkeypatch):
    monkeypatch.setattr(permutation, "_rounds", lambda count: 2)
    assert excess(orders(4, SEEDS[0])) > 50
    with pytest.raises(AssertionError):
        test_every_order_is_equally_likely(4)
    with pytest.raises(AssertionError):
        test_nine_classes_go_everywhere_and_in_pairs(SEEDS[0])


# The loss


def test_it_is_cross_entropy_with_permuted_probabilities():
    student, teacher = (draw(2, 7, 3, seed=seed, dtype=DOUBLE) for seed in (0, 1))
    order = draw(2, 7, 3, seed=2).argsort(1)
    p = (teacher / 2).softmax(1).gather(1, order)
    rows = -(p * (student / 2).log_softmax(1)).sum(1)
    options = dict(permutation=order, temperature=2.0, dim=1)
    ours = reference.dkpp_loss(student, teacher, reduction="none", **options)
    assert_same_formula(ours, 4 * rows)
    for reduction, divisor in (("batchmean", 6), ("mean", 6), ("sum", 1), ("elementmean", 42)):
        ours = reference.dkpp_loss(student, teacher, reduction=reduction, **options)
        assert_same_formula(ours, 4 * rows.sum() / divisor)


def test_with_two_classes_it_is_born_again():
    student, teacher = draw(16, 2, dtype=DOUBLE), draw(16, 2, seed=1, dtype=DOUBLE)
    expected = reference.soft_cross_entropy(student, teacher)
    assert reference.dkpp_loss(student, teacher) == expected


def test_a_saturated_teacher_is_a_label():
    student, target = draw(16, 10, dtype=DOUBLE), labels(16, classes=10)
    teacher = torch.where(F.one_hot(target, 10) > 0, 0.0, -inf).to(DOUBLE)
    assert_same_formula(reference.dkpp_loss(student, teacher), F.cross_entropy(student, target))


def test_the_drawn_permutation_keeps_the_first_of_equal_maxima():
    """The student's logits single out a class, so the loss of a row tells the probability that class got."""
    teacher = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0], dtype=DOUBLE).repeat(200, 1)
    student = torch.zeros(200, 5, dtype=DOUBLE)
    student[:, 1] = 50.0  # log q is 0 there and -50 elsewhere
    rows = reference.dkpp_loss(student, teacher, reduction="none")
    assert_same_formula(rows, 50 * (1 - teacher.softmax(-1)[:, 1]))
    rows = reference.dkpp_loss(student.roll(1, -1), teacher, reduction="none")
    assert len({round(x, 9) for x in rows.tolist()}) == 4  # that class gets any of the others


def test_generator_decides():
    student, teacher = draw(8, 30), draw(8, 30, seed=1)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return [reference.dkpp_loss(student, teacher, generator=generator).item() for _ in range(3)]

    assert loss(0) == loss(0) and len({*loss(0), *loss(1)}) == 6
    torch.manual_seed(5)
    first = reference.dkpp_loss(student, teacher)
    second = reference.dkpp_loss(student, teacher)
    torch.manual_seed(5)
    assert reference.dkpp_loss(student, teacher) == first != second


@pytest.mark.parametrize("reduction", row_oracle.REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_formulas(reduction, dtype):
    student, teacher = (draw(12, 9, seed=seed, dtype=dtype).requires_grad_() for seed in (0, 1))
    order = random_permutation(labels(12, classes=9), 9, 3)
    with torch.no_grad():
        teacher[3, 4] = student[3, order[3].tolist().index(4)] = -inf  # absent in both
    mask, weight = labels(12, classes=4) > 0, draw(12, seed=5, dtype=dtype).abs()
    options = dict(temperature=2.0, reduction=reduction)
    loss = reference.dkpp_loss(student, teacher, permutation=order, mask=mask, row_weight=weight, **options)
    loss.sum().backward()
    assert teacher.grad is None  # a constant
    truth = row_oracle.dkpp_loss(
        student.detach().double().numpy(),
        teacher.detach().double().numpy(),
        order.numpy(),
        mask=mask.numpy(),
        row_weight=weight.double().numpy(),
        **options,
    )
    precision = 2.0**-24 if dtype is torch.float32 else 2.0**-53
    for mine, name in ((loss.detach(), "loss"), (student.grad, "grad_student")):
        estimate = truth[name] if mine.dim() else row_oracle.Estimate(*(x[0] for x in truth[name]))
        row_oracle.close(mine.double().numpy(), row_oracle.Estimate(*map(np.asarray, estimate)), precision)


def test_hidden_rows_and_no_rows():
    student, teacher = draw(3, 5), draw(3, 5, seed=1)
    student[1], teacher[1] = nan, nan
    student.requires_grad_()
    loss = reference.dkpp_loss(student, teacher, mask=torch.tensor([True, False, True]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all() and (student.grad[1] == 0).all()
    assert reference.dkpp_loss(student, teacher, mask=torch.zeros(3, dtype=torch.bool)) == 0
    assert reference.dkpp_loss(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    assert reference.dkpp_loss(torch.zeros(3, 1), torch.ones(3, 1)) == 0


def test_derivatives_of_any_order():
    student, teacher = (draw(3, 4, seed=seed, scale=1.0, dtype=DOUBLE) for seed in (0, 1))
    order = draw(3, 4, seed=2).argsort()

    def loss(student):
        return reference.dkpp_loss(student, teacher, permutation=order, temperature=2.0, reduction="none")

    assert torch.autograd.gradcheck(loss, student.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, student)
