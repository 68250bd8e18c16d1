"""The twin of multi_head_kl against PyTorch's own expression, closed forms and the identities that define it."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula, draw

from kdkernels.reference import multi_head_kl, softened_kl

pytestmark = pytest.mark.numeric

CLASSES = (3, 12, 12, 1)


def heads(rows=5, dtype=torch.float64):
    return [[draw(rows, c, seed=10 * side + at, dtype=dtype) for at, c in enumerate(CLASSES)] for side in (0, 1)]


def test_is_the_sum_of_kl_div():
    students, teachers = heads()
    T = 3.0
    expected = [
        T * T * F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="batchmean")
        for s, t in zip(students, teachers)
    ]
    loss, parts = multi_head_kl(students, teachers, return_parts=True)
    assert_same_formula((loss, parts["heads"]), (sum(expected), torch.stack(expected)))
    weights = [0.5, 2.0, 0.0, 1.0]
    weighed = sum(w * head for w, head in zip(weights, expected))
    for given in (weights, torch.tensor(weights), torch.tensor(weights, dtype=torch.float64)):
        loss, parts = multi_head_kl(students, teachers, weights=given, return_parts=True)
        assert_same_formula((loss, parts["heads"]), (weighed, torch.stack(expected)))


def test_gradient_in_closed_form():
    students, teachers = heads()
    students = [student.requires_grad_() for student in students]
    T, weights = 3.0, [1.0, 0.5, 2.0, 1.0]
    gradients = torch.autograd.grad(multi_head_kl(students, teachers, weights=weights), students)
    expected = [w * T / 5 * (F.softmax(s / T, -1) - F.softmax(t / T, -1)) for w, s, t in zip(weights, students, teachers)]
    assert_same_formula(list(gradients), expected)


def test_two_classes_by_hand():
    """KL of (3/4, 1/4) from (1/2, 1/2) at T = 1."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = multi_head_kl([student, student], [teacher, student], temperature=1.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_denominator():
    students, teachers = heads()
    loss, parts = multi_head_kl(students, teachers, return_parts=True)
    for divisor in (10, 10.0, torch.tensor(10), torch.tensor(10.0)):
        ours = multi_head_kl(students, teachers, denominator=divisor, return_parts=True)
        assert_same_formula(ours, (loss / 2, {"heads": parts["heads"] / 2}))
    for bad in (0.0, -1.0, math.nan):
        assert multi_head_kl(students, teachers, denominator=torch.tensor(bad)).isnan()


def test_teachers_and_weights_are_constants():
    students, teachers = heads()
    weights = torch.ones(4, dtype=torch.float64, requires_grad=True)
    leaves = [tensor.requires_grad_() for tensor in (*students, *teachers)]
    loss = multi_head_kl(students, teachers, weights=weights)
    found = torch.autograd.grad(loss, [*leaves, weights], allow_unused=True)
    assert [gradient is None for gradient in found] == [False] * 4 + [True] * 5


def test_a_head_of_weight_0_adds_nothing():
    students, teachers = heads()
    students[0][0, 0] = -math.inf
    students[1][0, 0] = math.nan
    expected = sum(softened_kl(s, t, temperature=3.0) for s, t in zip(students[2:], teachers[2:]))
    leaves = [student.requires_grad_() for student in students]
    weights = [0.0, 0.0, 1.0, 1.0]
    for given in (weights, torch.tensor(weights)):
        loss, parts = multi_head_kl(students, teachers, weights=given, return_parts=True)
        assert_same_formula(loss, expected)
        assert parts["heads"][0] == math.inf and parts["heads"][1].isnan()
        gradients = torch.autograd.grad(loss, leaves)
        assert not gradients[0].any() and not gradients[1].any()
    assert multi_head_kl(students, teachers, weights=torch.tensor([0.0, 0.0, -1.0, 1.0])).isnan()


def test_no_rows_and_no_dimension_of_rows():
    students, teachers = heads(rows=0)
    loss, parts = multi_head_kl(students, teachers, return_parts=True)
    assert loss == 0 and parts["heads"].shape == (4,) and not parts["heads"].any()
    one = [tensor[0] for tensor in heads()[0]], [tensor[0] for tensor in heads()[1]]
    assert_same_formula(multi_head_kl(*one), multi_head_kl([s[None] for s in one[0]], [t[None] for t in one[1]]))


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float16)])
def test_dtypes(dtypes):
    """The loss of all heads has one dtype, each gradient its own."""
    students = [draw(5, 3, dtype=dtypes[0]).requires_grad_(), draw(5, 4).requires_grad_()]
    teachers = [draw(5, 3, seed=1, dtype=dtypes[1]), draw(5, 4, seed=1)]
    loss, parts = multi_head_kl(students, teachers, return_parts=True)
    assert loss.dtype == parts["heads"].dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    gradients = torch.autograd.grad(loss, students)
    assert [gradient.dtype for gradient in gradients] == [student.dtype for student in students]
