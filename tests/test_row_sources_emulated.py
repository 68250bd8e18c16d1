"""The CUDA kernels of the sources label, permuted and adjusted, emulated (docs/emulation.md), against the float64 formulas of
row_oracle.py: in every launch form, dtype and memory layout, under a random order of threads.
"""

import emulated
import numpy as np
import row_oracle
import pytest
from hypothesis import given, settings
from row_problems import plain_problem
from row_source_problems import check, numbered, source_problems
from test_row_loss_emulated import AT_LEISURE, launches

EXAMPLES = 150 if emulated.VARIANT == "sanitized" else 500


def solve(student, teacher, options, how=(0, {})):
    seed, how = how
    emulated.module().set_seed(seed)
    return emulated.module().row_loss(student, teacher, dim=1, **numbered(options), **how)


def matches_the_formulas(problem, launch):
    student, teacher, options = problem
    try:
        ours = solve(student, teacher, options, launch)
    except ValueError:  # not every form takes every problem
        ours = solve(student, teacher, options, (launch[0], {}))
    check(student, teacher, options, ours)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(source_problems(), launches())
def test_matches_the_formulas(problem, launch):
    matches_the_formulas(problem, launch)


@pytest.mark.long
@settings(max_examples=20 * EXAMPLES, **AT_LEISURE)
@given(source_problems(), launches())
def test_matches_the_formulas_at_length(problem, launch):
    matches_the_formulas(problem, launch)


@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
@pytest.mark.parametrize("source", ["label", "adjusted"])
def test_a_label_that_is_none_makes_its_row_nan(source, form):
    student, teacher = plain_problem(50)
    extra = {"label_on": 0.9, "label_off": 0.1 / 49, "adjustment": "exchange"}
    options = {"source": source, "reduction": "none", "target": np.array([0, 50, -7]), "source_options": extra}
    ours = solve(student, teacher, options, (1, {"form": form, "lanes": 32}))
    for name in ("loss", "grad_student"):
        np.testing.assert_array_equal(np.isnan(ours[name]).reshape(3, -1).all(1), [False, True, True], err_msg=name)


@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
def test_a_target_that_leaves_the_label_out(form):
    """The gradient at the label is a small probability, and not what is left of a larger number."""
    student, teacher = plain_problem(50)
    student[:, 7] = -9
    extra = {"label_on": 0.0, "label_off": 1 / 49, "label_entropy": np.log(49)}
    options = {"source": "label", "target": np.full(3, 7), "ignore_index": -100, "reduction": "sum", "source_options": extra}
    check(student, teacher, options, solve(student, teacher, options, (1, {"form": form, "lanes": 32})))


@pytest.mark.parametrize("adjustment", ["none", "exchange", "label"])
def test_a_label_that_is_none_spoils_what_asks_for_it(adjustment):
    """The divergence of a row only where it is counted, and adjusted by the label."""
    student, teacher = plain_problem(50)
    extra = {"label_on": 0.9, "label_off": 0.1 / 49, "adjustment": adjustment}
    options = {"source": "adjusted", "reduction": "none", "target": np.array([50, 50, 7]), "source_options": extra}
    ours = solve(student, teacher, {**options, "mask": np.array([False, True, True])})
    soft, hard = ours["parts"]
    np.testing.assert_array_equal(np.isnan(soft), [False, adjustment != "none", False])
    np.testing.assert_array_equal(np.isnan(hard), [True, True, False])


def test_a_permutation_that_leads_nowhere_makes_its_row_nan():
    student, teacher = plain_problem(5, rows=2)
    options = {"source": "permuted", "divergence": "cross_entropy", "reduction": "none"}
    options["source_options"] = {"permutation": np.array([[4, 3, 2, 1, 0], [0, 1, 2, 3, 2**40]])}
    ours = solve(student, teacher, options)
    np.testing.assert_array_equal(np.isnan(ours["loss"]), [False, True])


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_the_largest_class_stays_and_all_others_are_there_once(classes):
    """The kernel's permutation, read from the gradient of a student of equal logits: 1 / C - p."""
    _, teacher = plain_problem(classes)
    options = {"source": "permuted", "divergence": "cross_entropy", "reduction": "sum", "source_options": {"seed": 2**40 + 7}}
    gradient = solve(np.zeros_like(teacher), teacher, options)["grad_student"][..., 0]
    teacher = teacher[..., 0]
    kept = teacher.argmax(1)
    for row, order in enumerate(row_oracle.random_permutation(kept, classes, 2**40 + 7)):
        assert sorted(order) == list(range(classes)) and order[kept[row]] == kept[row]
        p = np.exp(teacher[row] - teacher[row].max())
        np.testing.assert_allclose(1 / classes - gradient[row], (p / p.sum())[order], atol=1e-6)


@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    process = emulated.run_sanitized(["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__])
    assert process.returncode == 0, process.stdout + process.stderr
