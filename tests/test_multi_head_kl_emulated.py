"""The CUDA kernels of several heads, emulated (docs/emulation.md), against the float64 formulas of row_oracle.py: in every launch
form, dtype and memory layout, under a random order of threads and blocks.
"""

import emulated
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multi_head_problems import check, plain_problem, problems

EXAMPLES = 40 if emulated.VARIANT == "sanitized" else 200
AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
MOST_HEADS = 16  # of a launch: most_heads of csrc/cuda/multi_head_kl.cuh
FORMS = ["held", "staged", "streamed", "strided"]


@st.composite
def launches(draw):
    how = {"form": draw(st.sampled_from(["auto", *FORMS])), "threads": draw(st.sampled_from([32, 64, 128]))}
    if how["form"] == "auto":
        how = {"sm": draw(st.sampled_from([75, 80, 90]))}
    elif how["form"] == "staged":
        how["cluster"] = draw(st.sampled_from([1, 2, 4]))
    return draw(st.integers(0, 2**32)), how


def solve(students, teachers, options, launch=(0, {})):
    seed, how = launch
    emulated.module().set_seed(seed)
    return emulated.module().multi_head_kl(students, teachers, **options, **how)


def matches_the_formulas(problem, launch):
    try:
        ours = solve(*problem, launch)
    except ValueError:  # not every form takes every problem
        ours = solve(*problem, (launch[0], {}))
    # A thread alone with a row adds 64 chunks one after another before it begins a new block.
    check(*problem, ours, factor=8)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(problems(), launches())
def test_matches_the_formulas(problem, launch):
    matches_the_formulas(problem, launch)


@pytest.mark.long
@settings(max_examples=20 * EXAMPLES, **AT_LEISURE)
@given(problems(most_heads=20), launches())
def test_matches_the_formulas_at_length(problem, launch):
    matches_the_formulas(problem, launch)


def launched(call):
    before = emulated.module().launch_count()
    found = call()
    return found, emulated.module().launch_count() - before


@pytest.mark.parametrize("heads", [1, 2, 4, MOST_HEADS, MOST_HEADS + 1, 2 * MOST_HEADS + 3])
def test_a_launch_for_every_sixteen_heads(heads):
    """The sum of the row losses included."""
    students, teachers = plain_problem([5 + 7 * (at % 5) for at in range(heads)])
    options = {"weights": [0.5 + at % 3 for at in range(heads)]}
    ours, launches = launched(lambda: solve(students, teachers, options))
    assert launches == -(-heads // MOST_HEADS)
    check(students, teachers, options, ours)


@pytest.mark.parametrize("rows", [0, 1, 33])
@pytest.mark.parametrize(
    "classes, dtypes",
    [((100, 400, 400, 400), ("float32", "float32")), ((1000, 4000), ("bfloat16", "bfloat16")), ((7, 70000), ("float32", "float32"))],
)
def test_one_launch_in_every_form(rows, classes, dtypes):
    """Rows in registers; staged in a block; in a cluster and, without one, streamed."""
    students, teachers = plain_problem(classes, rows=min(rows, 3) if max(classes) > 1000 else rows, dtypes=dtypes)
    for sm in (75, 90):
        ours, launches = launched(lambda: solve(students, teachers, {}, (1, {"sm": sm})))
        assert launches == 1
        check(students, teachers, {}, ours)


@pytest.mark.parametrize("form", FORMS)
def test_every_order_of_threads_and_blocks_gives_the_same_bits(form):
    """Whichever block finishes last."""
    students, teachers = plain_problem((100, 30, 257), rows=41)
    results = [solve(students, teachers, {}, (seed, {"form": form, "threads": 64})) for seed in range(6)]
    for result in results[1:]:
        for name in ("loss", "heads"):
            np.testing.assert_array_equal(result[name], results[0][name])
        for one, other in zip(result["grad_students"], results[0]["grad_students"]):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("classes", [(100, 7, 400, 1001), (1500, 2500)])
def test_a_head_has_the_bits_of_its_loss_alone(classes, dtype):
    """Heads that are held in registers, and heads that are not."""
    students, teachers = plain_problem(classes, rows=5, dtypes=(dtype, dtype))
    ours = solve(students, teachers, {"temperature": 4.0}, (3, {}))
    for at, (student, teacher) in enumerate(zip(students, teachers)):
        emulated.module().set_seed(0)
        alone = emulated.module().row_loss(student, teacher, temperature=4.0)
        np.testing.assert_array_equal(ours["grad_students"][at], alone["grad_student"])
        np.testing.assert_array_equal(ours["units"][at], alone["unit_student"])
        # The rows are added by blocks of other sizes, in float64.
        np.testing.assert_allclose(ours["heads"][at], alone["loss"][0], rtol=2e-7)


def test_a_head_of_weight_0_adds_nothing_but_its_part():
    students, teachers = plain_problem((10, 20))
    students[0][1, 3] = -np.inf  # infinite
    students[0][2] = np.nan
    for weights in ({"weights": [0.0, 2.0]}, {"weight_array": np.array([0.0, 2.0], np.float32)}):
        ours = solve(students, teachers, weights)
        alone = solve(students[1:], teachers[1:], {})
        assert ours["loss"] == 2 * alone["loss"] and np.isnan(ours["heads"][0])
        np.testing.assert_array_equal(ours["grad_students"][0], 0)


@pytest.mark.parametrize("bad", [{"weight_array": np.array([1.0, -1.0])}, {"denominator_array": 0.0}, {"denominator_array": -1.0}])
def test_numbers_of_the_device_that_are_out_of_range_make_the_loss_nan(bad):
    ours = solve(*plain_problem((10, 20)), bad)
    assert np.isnan(ours["loss"]) and np.isnan(ours["grad_students"][1]).all()
    assert np.isnan(ours["heads"]).all() == ("denominator_array" in bad)


@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    process = emulated.run_sanitized(["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__])
    assert process.returncode == 0, process.stdout + process.stderr
