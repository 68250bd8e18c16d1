"""The CUDA kernels of softened KL, emulated (docs/emulation.md), against the float64 formulas of row_oracle.py: problems drawn
by hypothesis in every launch form, dtype, memory layout and option, under a random order of threads.

In three sizes: in this process, in one with AddressSanitizer and UBSan (test_sanitized), and twenty times as long (-m long).
"""

import emulated
import numpy as np
import row_oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_problems import CLASSES, FEATURES, FLOATS, PRECISION, STORED, check, decode, encode, gradients, numbered, plain_problem, problems, sliced

EXAMPLES = 200 if emulated.VARIANT == "sanitized" else 800
AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@st.composite
def launches(draw):
    """How a problem is run: the order of threads, the launch form, and for what GPU."""
    form = draw(st.sampled_from(["auto", "auto", "held", "staged", "streamed", "strided"]))
    if form == "auto":
        how = {"sm": draw(st.sampled_from([75, 80, 86, 90, 100, 120]))}
    else:
        how = {"form": form, "lanes": draw(st.sampled_from([1, 4, 32])), "threads": draw(st.sampled_from([32, 64, 128]))}
        if form == "staged":
            how["cluster"] = draw(st.sampled_from([1, 1, 2, 4, 8]))
    return draw(st.integers(0, 2**32)), how


def solve(student, teacher, options, how=(0, {}), **more):
    """The emulated kernels' results."""
    seed, how = how
    emulated.module().set_seed(seed)
    return emulated.module().row_loss(student, teacher, dim=1, **numbered(options), **how, **more)


def matches_the_formulas(problem, launch, gradients):
    student, teacher, options = problem
    try:
        ours = solve(student, teacher, options, launch, **gradients)
    except ValueError:  # not every form takes every problem
        ours = solve(student, teacher, options, (launch[0], {}), **gradients)
    check(student, teacher, options, ours)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(problems(), launches(), gradients)
def test_matches_the_formulas(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(problems(features=FEATURES), launches(), gradients)
def test_features_match_the_formulas(problem, launch, gradients):
    """What one problem in many asks for."""
    matches_the_formulas(problem, launch, gradients)


@pytest.mark.long
@settings(max_examples=20 * EXAMPLES, **AT_LEISURE)
@given(problems(features=FEATURES), launches(), gradients)
def test_features_match_the_formulas_at_length(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


@pytest.mark.long
@settings(max_examples=20 * EXAMPLES, **AT_LEISURE)
@given(problems(st.sampled_from(CLASSES + [4096, 5003, 20000]) | st.integers(1, 3000)), launches(), gradients)
def test_matches_the_formulas_at_length(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


@settings(max_examples=EXAMPLES // 2, **AT_LEISURE)
@given(problems(), gradients, st.lists(st.integers(0, 2**20), max_size=3), st.integers(0, 2**32))
def test_classes_in_parts_match_the_formulas(problem, gradients, starts, seed):
    """Each part measured, merged with the others and finished (csrc/row_measure.h)."""
    student, teacher, options = problem
    if options["reduction"] == "elementmean":  # it divides by the classes of a part
        options = {**options, "reduction": "sum"}
    if "target" in options:  # one that is out of range names a class of no part
        known = (options["target"] >= 0) & (options["target"] < student.shape[1])
        options = {**options, "target": np.where(known, options["target"], options["ignore_index"])}
    starts = sorted({0, *(start % student.shape[1] for start in starts)})
    if options["source"] == "probs" and teacher.dtype == np.float16:  # the largest derivative is that of a part, and so is its unit
        gradients = {**gradients, "grad_teacher": False}
    check(student, teacher, options, solve(student, teacher, options, (seed, {}), **gradients, starts=starts))


@pytest.mark.parametrize("divergence", row_oracle.DIVERGENCES)
@pytest.mark.parametrize(
    "classes, dtype, sm, form, cluster",
    [
        (1024, "float32", 90, "held", 1),
        (1025, "float32", 90, "staged", 1),
        (9000, "float32", 75, "streamed", 1),  # 72 kB
        (9000, "float16", 75, "staged", 1),
        (9000, "float32", 90, "staged", 2),
        (9001, "float32", 90, "staged", 2),
        (50000, "bfloat16", 120, "staged", 8),
        (30000, "bfloat16", 89, "streamed", 1),
        (1000, "float64", 90, "strided", 1),
    ],
)
def test_every_form_is_chosen(classes, dtype, sm, form, cluster, divergence):
    student, teacher = plain_problem(classes, rows=2, dtype=dtype)
    options = {"divergence": divergence, "target": np.array([0, classes - 1]), "ce_weight": 1.0}
    ours = solve(student, teacher, options, (1, {"sm": sm}), grad_teacher=True)
    assert (ours["form"], ours["cluster"]) == (form, cluster)
    check(student, teacher, options, ours)


@pytest.mark.parametrize(
    "classes, dtype, sm",
    [
        (21841, "float32", 90),
        (21841, "bfloat16", 90),
        (12288, "float16", 80),
        *((classes, "bfloat16", 90) for classes in (12288, 24576, 49152, 98304)),
    ],
)
def test_rows_of_48_KiB_start(classes, dtype, sm):
    """A block's share of the row is exactly 48 KiB: with the static shared memory of the kernel it needs the opt-in."""
    student, teacher = plain_problem(classes, rows=1, dtype=dtype)
    ours = solve(student, teacher, {}, (1, {"sm": sm}))
    assert ours["form"] == "staged" and ours["shared_bytes"] == 48 * 1024
    check(student, teacher, {}, ours)


@pytest.mark.parametrize("cluster", [1, 4])
@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
def test_every_order_of_threads_gives_the_same_bits(form, cluster):
    student, teacher = plain_problem(700)
    options = {"divergence": "jsd", "target": np.array([5, -100, 699]), "ce_weight": 1.0, "row_weight": np.ones(3)}
    how = {"form": form, "lanes": 32, "cluster": cluster, "threads": 32}
    results = [solve(student, teacher, options, (seed, how), grad_teacher=True) for seed in range(8)]
    for result in results[1:]:
        for name in ("loss", "parts", "grad_student", "grad_teacher"):
            np.testing.assert_array_equal(result[name], results[0][name], err_msg=name)


@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
def test_rows_that_two_strides_lead_to(form):
    student, teacher = plain_problem(40, rows=8)
    options = {"target": np.arange(8), "ce_weight": 0.5}
    how = (1, {"form": form, "lanes": 32, "threads": 32})
    expected = solve(student, teacher, options, how, grad_teacher=True)
    emulated.module().set_seed(1)
    ours = emulated.module().row_loss(sliced(student), sliced(teacher), dim=2, grad_teacher=True, **options, **how[1])
    for name in ("loss", "grad_student", "grad_teacher"):
        np.testing.assert_array_equal(ours[name].reshape(expected[name].shape), expected[name])


def test_probabilities_without_a_gradient_stay_finite_in_float16():
    """The loss is 0 there, and so is the gradient, whatever it is multiplied by and whatever its unit."""
    student, teacher = np.float16([[-6e4, 6e4, -6e4]]), np.float16([[0, 1, 0]])
    options = {"source": "probs", "divergence": "cross_entropy", "temperature": 1e3, "row_weight": np.float32([1e4])}
    ours = solve(student, teacher, options, grad_teacher=True)
    np.testing.assert_array_equal(ours["grad_teacher"], np.zeros((1, 3)))


@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
def test_even_jensen_shannon_is_symmetric_to_the_bit(form):
    student, teacher = plain_problem(700, rows=8)
    options, how = {"divergence": "jsd", "temperature": 3.0}, (1, {"form": form, "lanes": 32, "threads": 32})
    ours = solve(student, teacher, options, how, grad_teacher=True)
    exchanged = solve(teacher, student, options, how, grad_teacher=True)
    pairs = [("loss", "loss"), ("grad_student", "grad_teacher"), ("grad_teacher", "grad_student")]
    for name, other in pairs:
        np.testing.assert_array_equal(ours[name], exchanged[other], err_msg=name)


@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
def test_rows_that_are_no_distribution_are_nan(form):
    """A row without any class, a NaN logit, a label that is none, a temperature of 0: that row, and no other."""
    student, teacher = plain_problem(50, rows=6)
    student[0] = -np.inf
    teacher[1] = -np.inf
    student[2, 7] = np.nan
    options = {
        "reduction": "none",
        "target": np.array([0, 0, 0, 50, 0, 0]),
        "row_temperature": np.array([1, 1, 1, 1, 0, 1], np.float32),
        "ce_weight": 1.0,
    }
    ours = solve(student, teacher, options, (1, {"form": form, "lanes": 32}), grad_teacher=True)
    lost = np.array([True] * 5 + [False])
    np.testing.assert_array_equal(np.isnan(ours["loss"]), lost)
    np.testing.assert_array_equal(np.isnan(ours["grad_student"]).all((1, 2)), lost)
    np.testing.assert_array_equal(np.isnan(ours["grad_student"]).any((1, 2)), lost)
    assert not np.isnan(ours["grad_teacher"][5]).any()


def test_extreme_logits_are_exact():
    student = np.array([1e4, -1e4, 0, 1e4, 5, -3], np.float32).reshape(2, 3, 1)
    teacher = np.array([1e4, 1e4, 0, 0, 1e4, 3], np.float32).reshape(2, 3, 1)
    for divergence in row_oracle.DIVERGENCES:
        options = {"divergence": divergence, "reduction": "none"}
        check(student, teacher, options, solve(student, teacher, options, grad_teacher=True))


def test_launches():
    """No kernel more than the problem needs."""

    def launches(**options):
        before = emulated.module().launch_count()
        solve(*plain_problem(10, rows=4), options)
        return emulated.module().launch_count() - before

    assert launches() == launches(reduction="none") == 2  # rows, reduction
    assert launches(mask=np.ones(4, bool)) == launches(target=np.zeros(4, int)) == 2  # every block counts the rows


def test_many_rows_are_counted_once():
    rng = np.random.default_rng(0)
    student, teacher = plain_problem(3, rows=4097)
    options = {"mask": rng.random(4097) < 0.5, "target": rng.integers(-1, 3, 4097), "ignore_index": -1, "ce_weight": 0.5}
    before = emulated.module().launch_count()
    ours = solve(student, teacher, options)
    assert emulated.module().launch_count() - before == 3
    check(student, teacher, options, ours)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(st.data())
def test_scale_gradient(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = tuple(data.draw(st.sampled_from(sizes)) for sizes in ([0, 1, 3], [1, 7, 100, 1000], [1, 1, 5]))
    dtype = data.draw(st.sampled_from(FLOATS))
    gradient = encode(rng.normal(size=shape).astype(np.float32), dtype)
    if data.draw(st.booleans()):  # channels last
        gradient = np.ascontiguousarray(gradient.transpose(0, 2, 1)).transpose(0, 2, 1)
    rows = shape[0] * shape[2]
    upstream = data.draw(st.sampled_from([np.ones(()), np.full((), 0.3), rng.normal(size=rows)]))
    upstream = upstream.astype(data.draw(st.sampled_from([np.float32, np.float64])))
    before = decode(gradient)

    emulated.module().set_seed(data.draw(st.integers(0, 2**32)))
    emulated.module().scale_gradient(gradient, upstream, dim=1)

    per_row = upstream.reshape(shape[0], 1, shape[2]) if upstream.ndim else upstream
    truth = row_oracle.Estimate(before * per_row, np.abs(before * per_row))
    precision = PRECISION["float64" if dtype == "float64" else "float32"]
    row_oracle.close(decode(gradient), truth, precision, *STORED[dtype][:2])


@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    process = emulated.run_sanitized(["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__])
    assert process.returncode == 0, process.stdout + process.stderr
