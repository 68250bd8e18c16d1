"""The options of the row losses' two terms at their edges, in every launch form: the CUDA kernels, emulated
(docs/emulation.md). What test_row_options_host.py says of the CPU kernels.
"""

import emulated
import numpy as np
import pytest
import row_oracle
from row_problems import check, encode, numbered, plain_problem

DIVERGENCES = [{"divergence": name} for name in row_oracle.DIVERGENCES]
DIVERGENCES += [{"divergence": name, "skew": skew} for name in ("forward", "reverse") for skew in (0.1, 0.9)]


@pytest.fixture(params=["held", "staged", "streamed", "strided"])
def form(request):
    return {"form": request.param, "lanes": 32, "threads": 64}


def solve(student, teacher, how, **options):
    emulated.module().set_seed(1)
    return emulated.module().row_loss(student, teacher, dim=1, grad_teacher=True, **numbered(options), **how)


@pytest.mark.parametrize("options", DIVERGENCES, ids=str)
@pytest.mark.parametrize("more", [{}, {"standardize": True}, {"shared_classes": 70}], ids=str)
def test_equal_rows_have_no_gradient(form, options, more):
    logits, _ = plain_problem(100, rows=5)
    ours = solve(logits, logits.copy(), form, temperature=3.0, **options, **more)
    if options["divergence"] != "cross_entropy":
        assert (ours["loss"] == 0).all() and (ours["grad_teacher"] == 0).all()
    assert (ours["grad_student"] == 0).all()


@pytest.mark.parametrize("options", DIVERGENCES, ids=str)
def test_large_logits_are_standardized(form, options):
    student, teacher = plain_problem(100, rows=4)
    offset = np.array([1e4, -1e4, 0, 3e3], np.float32).reshape(-1, 1, 1)
    student, teacher = student + offset, teacher + offset[::-1]
    options = {**options, "standardize": True, "temperature": 2.0}
    check(student, teacher, options, solve(student, teacher, form, **options))


@pytest.mark.parametrize("options", DIVERGENCES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_constant_rows_are_standardized_to_zeros(form, options, classes):
    rng = np.random.default_rng(0)
    student, teacher = (np.repeat(rng.normal(size=(3, 1, 1)), classes, 1).astype(np.float32) for _ in range(2))
    teacher[2] = rng.normal(size=(classes, 1))  # not constant, but for one class
    options = {**options, "standardize": True}
    ours = solve(student, teacher, form, **options)
    check(student, teacher, options, ours)
    assert (ours["grad_student"] == 0).all() and (ours["grad_teacher"][:2] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("transforms", [2, 4])
@pytest.mark.parametrize("teacher_gradient", [False, True])  # path forward, path general
def test_joint_labels(form, dtype, transforms, teacher_gradient):
    student, teacher = plain_problem(20, rows=8, dtype=dtype)
    target = np.array([0, 4, -100, 3])[: 8 // transforms]
    joint = [y * transforms + r if y >= 0 else y for y in target for r in range(transforms)]
    options = {"ce_weight": 1.0, "label_smoothing": 0.1, **form, "dim": 1, "grad_teacher": teacher_gradient}
    ours = emulated.module().row_loss(student, teacher, target=target, transforms=transforms, **options)
    expected = emulated.module().row_loss(student, teacher, target=np.array(joint), **options)
    for name in ("loss", "parts", "grad_student"):
        np.testing.assert_array_equal(ours[name], expected[name])


def test_a_range_of_classes(form):
    """A label outside is a class of no column: its row is NaN, since no device can raise."""
    student, teacher = plain_problem(30, rows=4)
    target = np.array([10, 19, -100, 20])
    options = {"ce_weight": 1.0, "kl_weight": 0.0, "reduction": "none"}
    ours = solve(student[:, 10:20], teacher[:, 10:20], form, target=target, first_class=10, **options)
    check(student[:, 10:20], teacher[:, 10:20], {**options, "target": np.where(target < 0, target, target - 10)}, ours)
    np.testing.assert_array_equal(np.isnan(ours["loss"]), [False, False, False, True])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_distribution_on_one_class_is_a_label(form, dtype, smoothing):
    student, teacher = plain_problem(100, rows=4, dtype=dtype)
    target = np.array([0, 99, 5, 50])
    probs = encode(np.eye(100)[target][:, :, None].astype(np.float32), dtype)
    options = {"ce_weight": 0.5, "label_smoothing": smoothing, "temperature": 4.0}
    check(student, teacher, {**options, "target": target}, solve(student, teacher, form, target_probs=probs, **options))


def test_infinite_terms_of_opposite_sign(form):
    """A class that the student rules out, in both terms: the gradient of the row is whatever, and the next one's is not."""
    student, teacher = plain_problem(9, rows=3)
    student[0, 4] = -np.inf
    options = {"target": np.array([0, 1, 2]), "ce_weight": 1.0, "label_smoothing": 0.1, "reduction": "none"}
    options["row_weight"] = np.array([-1, -1, 1], np.float32)
    ours = solve(student, teacher, form, **options)
    assert np.isnan(ours["loss"][0]) and np.isfinite(ours["loss"][1:]).all()
    check(student, teacher, options, ours)


def test_distance_between_rows_of_equally_many_classes(form):
    """p = q in the classes that both have, where the sign of p - q is any; p = q = 0 in those that neither has."""
    student, teacher = np.zeros((2, 1, 9, 1), np.float32)
    student[0, [0, 1, 2]] = teacher[0, [1, 2, 3]] = -np.inf
    options = {"divergence": "tvd"}
    check(student, teacher, options, solve(student, teacher, form, **options))


def test_one_class_outweighs_a_thousand():
    """Every chunk of 8 other weights is rounded to less when it is added to that of the largest class."""
    student, teacher = plain_problem(1000, rows=1)
    student[:] = np.log(1.08 * 2.0**-23 / 8)
    student[0, 3] = 0
    options = {"target": np.array([7]), "ce_weight": 1.0, "kl_weight": 0.0}
    check(student, teacher, options, solve(student, teacher, {"form": "strided", "lanes": 1, "threads": 32}, **options))


@pytest.mark.parametrize("given", [0.0, -1.0, np.nan])
@pytest.mark.parametrize("options", [*DIVERGENCES, {"target": np.arange(4), "ce_weight": 1.0}], ids=str)
def test_a_denominator_that_is_not_positive(given, options):
    student, teacher = plain_problem(9, rows=4)
    ours = solve(student, teacher, {}, groups=2, denominator=np.array([given, 2.0]), **options)
    assert np.isnan(ours["loss"][0]) and np.isfinite(ours["loss"][1])
    for name in ("grad_student", "grad_teacher"):
        assert np.isnan(ours[name][:2]).all() and np.isfinite(ours[name][2:]).all()


def test_given_denominators_need_no_count():
    """No launch that counts rows, many as they are."""
    student, teacher = plain_problem(3, rows=4100)
    options = {"mask": np.arange(4100) % 3 > 0, "denominator": np.array([7.0])}
    before = emulated.module().launch_count()
    ours = solve(student, teacher, {}, **options)
    assert emulated.module().launch_count() - before == 2
    check(student, teacher, options, ours)


def test_what_is_not_compared_may_be_anything(form):
    student, teacher = plain_problem(50, rows=3)
    options = {"shared_classes": 20, "divergence": "jsd"}
    expected = solve(student, teacher, form, **options)
    student[:, 20:] = teacher[:, 20:] = np.nan
    ours = solve(student, teacher, form, **options)
    for name in ("loss", "grad_student", "grad_teacher"):
        np.testing.assert_array_equal(ours[name], expected[name])
    assert (ours["grad_student"][:, 20:] == 0).all() and (ours["grad_teacher"][:, 20:] == 0).all()


@pytest.mark.parametrize("width", [20, 30, 61])
def test_a_teacher_of_another_width(form, width):
    student, teacher = plain_problem(30, rows=3)[0], plain_problem(width, rows=3)[1]
    options = {"shared_classes": 20, "target": np.array([0, 29, 5]), "ce_weight": 1.0, "standardize": True}
    check(student, teacher, options, solve(student, teacher, form, **options))
