"""The twin of decoupled_kl: the code of its paper, the divergence that it splits, closed forms, saturated rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw, labels

from kdkernels import reference

pytestmark = pytest.mark.numeric

inf = math.inf
DOUBLE = torch.float64


def published(student, teacher, target, temperature, alpha, beta):
    """The paper's loss as its authors compute it: masks, softmax, concatenation, kl_div."""
    is_label = F.one_hot(target, student.shape[1]).bool()

    def two(logits):
        p = F.softmax(logits / temperature, 1)
        return torch.cat([p[is_label].unsqueeze(1), p.masked_fill(is_label, 0).sum(1, keepdim=True)], 1)

    def others(logits):
        return logits / temperature - 1e3 * is_label

    tckd = F.kl_div(two(student).log(), two(teacher), reduction="batchmean")
    nckd = F.kl_div(F.log_softmax(others(student), 1), F.softmax(others(teacher), 1), reduction="batchmean")
    return temperature**2 * (alpha * tckd + beta * nckd)


def pair(*shape, scale=3.0):
    return [draw(*shape, seed=seed, scale=scale, dtype=DOUBLE).requires_grad_() for seed in (0, 1)]


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha, beta", [(1.0, 8.0), (0.5, 0.0), (0.0, 2.0)])
def test_published_formula(temperature, alpha, beta):
    student, teacher = pair(7, 10)
    target = labels(7, classes=10)
    options = dict(temperature=temperature, alpha=alpha, beta=beta)
    ours = reference.decoupled_kl(student, teacher, target, **options)
    expected = published(student, teacher, target, **options)
    assert_same_formula(ours, expected)
    assert_same_formula(*(torch.autograd.grad(loss, student)[0] for loss in (ours, expected)))


def test_it_splits_the_divergence():
    """KL = TCKD + (1 - p_y) NCKD, with both gradients."""
    student, teacher = pair(6, 9)
    target, T = labels(6, classes=9), 3.0
    _, parts = reference.decoupled_kl(student, teacher, target, temperature=T, reduction="none", return_parts=True)
    p = F.softmax(teacher.detach() / T, 1).gather(1, target[:, None]).squeeze(1)
    kl = reference.softened_kl(student, teacher, temperature=T, reduction="none")
    assert_same_formula(parts["tckd"] + (1 - p) * parts["nckd"], kl.detach())

    def sum_of_terms(student, teacher):
        tckd = reference.decoupled_kl(student, teacher, target, temperature=T, beta=0.0, reduction="none")
        nckd = reference.decoupled_kl(student, teacher, target, temperature=T, alpha=0.0, beta=1.0, reduction="none")
        p = F.softmax(teacher / T, 1).gather(1, target[:, None]).squeeze(1)
        return (tckd + (1 - p) * nckd).sum()

    found = torch.autograd.grad(sum_of_terms(student, teacher), (student, teacher))
    assert_same_formula(found, torch.autograd.grad(kl.sum(), (student, teacher)))


def test_gradients_of_the_formula():
    """Those that the kernels compute."""
    student, teacher = pair(5, 6)
    target, T, alpha, beta = labels(5, classes=6), 2.0, 0.7, 3.0
    loss = reference.decoupled_kl(student, teacher, target, temperature=T, alpha=alpha, beta=beta, reduction="sum")
    ours = torch.autograd.grad(loss, (student, teacher))
    is_label = F.one_hot(target, 6).bool()
    q, p = (F.softmax(each.detach() / T, 1) for each in (student, teacher))
    q_label, p_label = (x.gather(1, target[:, None]) for x in (q, p))
    q_hat, p_hat = ((x / (1 - y)).masked_fill(is_label, 0) for x, y in ((q, q_label), (p, p_label)))
    excess = alpha * (q_label - p_label)
    by_student = torch.where(is_label, excess, beta * (q_hat - p_hat) - excess * q_hat)
    gap = torch.logit(p_label) - torch.logit(q_label)
    ratio = torch.where(is_label, 0, (p_hat / q_hat).log())
    nckd = (p_hat * ratio).sum(1, keepdim=True)
    by_odds = p_label * (1 - p_label) * gap
    by_teacher = torch.where(is_label, alpha * by_odds, beta * p_hat * (ratio - nckd) - alpha * by_odds * p_hat)
    assert_same_formula(ours, (T * by_student, T * by_teacher))


def test_two_classes_and_one():
    student, teacher = pair(4, 2)
    target = labels(4, classes=2)
    loss, parts = reference.decoupled_kl(student, teacher, target, temperature=2.0, return_parts=True)
    assert parts["nckd"] == 0
    assert_same_formula(loss, reference.softened_kl(student, teacher, temperature=2.0))
    student, teacher = pair(4, 1)
    loss = reference.decoupled_kl(student, teacher, torch.zeros(4, dtype=torch.int64))
    assert loss == 0 and all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (student, teacher)))


def test_saturated_rows():
    """Logits of 1e4 at T = 1: the log-odds are 1e4 and -2e4, the others one-hot."""
    student = torch.tensor([[1e4, 0.0, -1e4]], dtype=DOUBLE, requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]], dtype=DOUBLE)
    options = dict(temperature=1.0, beta=2.0, return_parts=True)
    loss, parts = reference.decoupled_kl(student, teacher, torch.tensor([0]), **options)
    assert parts["tckd"] == 1e4 and parts["nckd"] == 1e4 and loss == 3e4
    assert torch.autograd.grad(loss, student)[0].tolist() == [[1.0, 1.0, -2.0]]


def test_classes_of_probability_0():
    target = torch.tensor([0])

    def parts(student, teacher):
        given = (torch.tensor([logits], dtype=DOUBLE) for logits in (student, teacher))
        _, found = reference.decoupled_kl(*given, target, temperature=1.0, return_parts=True)
        return found["tckd"].item(), found["nckd"].item()

    # Excluded by both: as if it were not there.
    assert parts([1.0, 0.0, -inf], [2.0, 1.0, -inf]) == (0.0, 0.0)
    # By the student alone.
    assert parts([1.0, 0.0, -inf], [2.0, 0.0, 0.0])[1] == inf
    assert parts([-inf, 0.0, 0.0], [0.0, 0.0, 0.0])[0] == inf
    # By the teacher alone: all its others, or the label.
    assert parts([0.0, 0.0, 0.0], [0.0, -inf, -inf]) == (pytest.approx(math.log(3)), 0.0)
    assert parts([0.0, 0.0, 0.0], [-inf, 0.0, 0.0]) == (pytest.approx(math.log(1.5)), 0.0)
    # A row that is none.
    assert all(map(math.isnan, parts([-inf, -inf, -inf], [0.0, 0.0, 0.0])))
    for bad in (inf, math.nan):
        for row in ([bad, 0.0, 0.0], [0.0, bad, 0.0]):
            for pair in ((row, [0.0, 0.0, 0.0]), ([0.0, 0.0, 0.0], row)):
                assert all(map(math.isnan, parts(*pair)))


def test_rows_that_do_not_count():
    student, teacher = pair(6, 5)
    target, mask = labels(6, classes=5), torch.tensor([True, True, False, True, True, True])
    target[1] = -100
    kept = torch.tensor([0, 3, 4, 5])
    expected = reference.decoupled_kl(student[kept], teacher[kept], target[kept])
    with torch.no_grad():
        student[1], teacher[2] = math.nan, inf
    ours = reference.decoupled_kl(student, teacher, target, mask=mask)
    assert_same_formula(ours, expected)
    for gradient in torch.autograd.grad(ours, (student, teacher)):
        assert (gradient[1:3] == 0).all()
    nothing = reference.decoupled_kl(student, teacher, torch.full((6,), -100))
    assert nothing == 0 and all((g == 0).all() for g in torch.autograd.grad(nothing, (student, teacher)))


def test_a_row_has_one_value():
    student, teacher = pair(6, 5)
    target = labels(6, classes=5)
    names = ("elementmean", "mean", "batchmean")
    means = [reference.decoupled_kl(student, teacher, target, reduction=name) for name in names]
    assert means[0] == means[1] == means[2]
    by = reference.decoupled_kl(student, teacher, target, denominator=12)
    assert_same_formula(2 * by, means[0])


def test_gradcheck():
    student, teacher = pair(4, 5, scale=1.0)
    target = labels(4, classes=5)
    target[2] = -100

    def loss(student, teacher):
        return reference.decoupled_kl(student, teacher, target, temperature=2.0)

    assert torch.autograd.gradcheck(loss, (student, teacher), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (student, teacher))
