"""The CUDA kernels of softened KL, emulated (docs/emulation.md), against the float64 formulas of oracle.py: problems drawn
by hypothesis in every launch form, dtype, memory layout and option, under a random order of threads.

In three sizes: in this process, in one with AddressSanitizer and UBSan (test_sanitized), and twenty times as long (-m long).
"""

import emulated
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 200 if emulated.VARIANT == "sanitized" else 800
AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}

# Arithmetic precision (half an ulp of 1), and per storage dtype the same and half its smallest number.
PRECISION = {"float32": 2.0**-24, "float64": 2.0**-53}
STORED = {
    "float32": (2.0**-24, 2.0**-150, 3.4e38),
    "float64": (2.0**-53, 0, 1e308),
    "float16": (2.0**-11, 2.0**-25, 65504),
    "bfloat16": (2.0**-8, 2.0**-134, 3.3e38),
}
FLOATS = sorted(STORED)

# One class, binary, around one chunk of 8, common sizes, around 127 chunks (the last that registers hold), and what a
# block shares.
CLASSES = [1, 2, 7, 8, 9, 10, 24, 25, 100, 256, 1000, 1001, 1008, 1016, 1017, 1025, 2500]


def encode(values, dtype):
    return emulated.module().float_to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def decode(array):
    return (emulated.module().bfloat16_to_float(array) if array.dtype == np.uint16 else array).astype(np.float64)


def lay_out(array, order, front, step):
    """The same [outer, C, inner] values in a larger buffer of NaN: axes in this order in memory, starting `front`
    elements late, elements of the last axis `step` apart."""
    moved = array.transpose(order)
    width = moved.shape[-1] * step
    buffer = np.empty((*moved.shape[:-1], front + width + 1), array.dtype)
    buffer.view(np.uint8)[...] = 0xFF
    view = buffer[..., front : front + width : step]
    view[...] = moved
    return view.transpose(np.argsort(order))


def as_rows(array):
    """[outer, C, inner] -> [rows, C]"""
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def make_logits(rng, shape, spread, absent):
    logits = (rng.normal(size=shape) * spread).astype(np.float32)
    hidden = rng.random(shape) < absent
    hidden[:, :1] = False  # a row without any class is another test
    return np.where(hidden, -np.inf, logits).astype(np.float32)


def make_teacher(rng, shape, spread, absent, source):
    logits = make_logits(rng, shape, spread, absent)
    if source == "logits":
        return logits
    log_p = np.moveaxis(oracle.log_softmax(np.moveaxis(logits, 1, -1).astype(np.float64)), -1, 1)
    return (log_p if source == "log_probs" else np.exp(log_p)).astype(np.float32)


@st.composite
def problems(draw, classes=st.sampled_from(CLASSES) | st.integers(1, 300)):
    """(student, teacher, options): logits [outer, C, inner] in their memory layout, options by the oracle's names."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    outer, inner, groups = draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 1, 2, 5])), 1
    shape = (outer, draw(classes), inner)
    rows = outer * inner
    if rows and draw(st.booleans()):
        groups = draw(st.sampled_from([g for g in range(1, outer + 1) if outer % g == 0]))
    source = draw(st.sampled_from(oracle.SOURCES))
    spread = draw(st.sampled_from([0.0, 1.0, 5.0, 100.0]))
    # No probability of exactly 0 beside those that underflow: where these meet, the KL is infinite in float64 alone.
    spread = min(spread, 5.0) if source == "probs" else spread
    absent = draw(st.sampled_from([0, 0, 0.3])) if spread < 100 else 0

    options = {
        "source": source,
        "divergence": draw(st.sampled_from(oracle.DIVERGENCES)),
        "reduction": draw(st.sampled_from(oracle.REDUCTIONS)),
        "temperature": draw(st.sampled_from([1.0, 4.0, 0.5])),
        "beta": draw(st.sampled_from([0.5, 0.1, 0.0, 1.0])),
        "target_eps": draw(st.sampled_from([0.0, 0.0, 1e-7, 0.1])),
        "scale_by_t2": draw(st.booleans()),
        "kl_weight": draw(st.sampled_from([1.0, 0.3])),
        "groups": groups,
    }
    student = make_logits(rng, shape, spread, absent)
    teacher = make_teacher(rng, shape, spread, draw(st.sampled_from([0, absent])), source)
    if draw(st.booleans()):
        options["mask"] = rng.random(rows) < 0.7
        np.moveaxis(teacher, 1, -1)[~options["mask"].reshape(outer, inner)] = np.nan  # never looked at
    if draw(st.booleans()):
        options["row_weight"] = rng.normal(size=rows).astype(np.float32)
    if draw(st.booleans()):
        options["row_temperature"] = rng.uniform(0.5, 5, rows).astype(np.float32)
    if draw(st.booleans()):
        ignore = options["ignore_index"] = draw(st.sampled_from([-100, -1, shape[1] // 2]))
        options["ce_weight"] = draw(st.sampled_from([1.0, 0.5, 0.0]))
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
        options["target"] = rng.integers(0, shape[1], rows)
        options["target"][rng.random(rows) < 0.2] = ignore
        if draw(st.integers(0, 9)) == 0:
            options["target"][rng.random(rows) < 0.3] = draw(st.sampled_from([shape[1], -7, 2**40]))

    layouts = st.tuples(st.permutations([0, 1, 2]), st.integers(0, 9), st.sampled_from([1, 1, 1, 2]))
    plain = st.just(((0, 2, 1), 0, 1))
    student, teacher = (encode(logits, draw(st.sampled_from(FLOATS))) for logits in (student, teacher))
    return lay_out(student, *draw(plain | layouts)), lay_out(teacher, *draw(plain | layouts)), options


@st.composite
def launches(draw):
    """How a problem is run: the order of threads, the launch form, and for what GPU."""
    form = draw(st.sampled_from(["auto", "auto", "held", "staged", "streamed", "strided"]))
    if form == "auto":
        how = {"sm": draw(st.sampled_from([75, 80, 86, 90, 100, 120]))}
    else:
        lanes, threads = draw(st.sampled_from([1, 4, 32])), draw(st.sampled_from([32, 64, 128]))
        how = {"form": form, "lanes": lanes, "threads": threads}
    return draw(st.integers(0, 2**32)), how


def solve(student, teacher, options, how=(0, {}), **more):
    """The emulated kernels' results."""
    seed, how = how
    names = {"source": oracle.SOURCES, "divergence": oracle.DIVERGENCES, "reduction": oracle.REDUCTIONS}
    numbers = {name: names[name].index(value) for name, value in options.items() if name in names}
    emulated.module().set_seed(seed)
    return emulated.module().softened_kl(student, teacher, dim=1, **{**options, **numbers}, **how, **more)


def name_of(array):
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def check(student, teacher, options, ours):
    """Compares results with the oracle. Rows of infinite loss have whatever gradient."""
    double = "float64" in (name_of(student), name_of(teacher))
    precision = PRECISION["float64" if double else "float32"]
    # A thread alone with a row adds up all classes one after another.
    factor = 4
    truth = oracle.softened_kl(as_rows(decode(student)), as_rows(decode(teacher)), **options)
    rows = oracle.softened_kl(as_rows(decode(student)), as_rows(decode(teacher)), **{**options, "reduction": "none"})
    for name in ("loss", "parts"):
        if truth[name] is not None:
            oracle.close(ours[name].astype(np.float64), truth[name], precision, precision, factor=factor)
    for name, logits in (("grad_student", student), ("grad_teacher", teacher)):
        if ours[name] is None:
            continue
        assert ours[name].shape == logits.shape and ours[name].dtype == logits.dtype
        stored = STORED[name_of(logits)]
        regular = ~np.isinf(rows["loss"].value)[:, None] & ~(np.abs(truth[name].value) >= 0.99 * stored[2])
        ours_here = np.where(regular, as_rows(decode(ours[name])), 0)
        oracle.close(ours_here, truth[name].where(regular), precision, *stored[:2], factor=factor)


def matches_the_formulas(problem, launch, gradients):
    student, teacher, options = problem
    try:
        ours = solve(student, teacher, options, launch, **gradients)
    except ValueError:  # not every form takes every problem
        ours = solve(student, teacher, options, (launch[0], {}), **gradients)
    check(student, teacher, options, ours)


gradients = st.fixed_dictionaries({"grad_student": st.booleans(), "grad_teacher": st.booleans()})


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(problems(), launches(), gradients)
def test_matches_the_formulas(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


@pytest.mark.long
@settings(max_examples=20 * EXAMPLES, **AT_LEISURE)
@given(problems(st.sampled_from(CLASSES + [4096, 5003, 20000]) | st.integers(1, 3000)), launches(), gradients)
def test_matches_the_formulas_at_length(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


def plain_problem(classes, rows=3, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, rows, classes, 1)).astype(np.float32) * 3
    return encode(student, dtype), encode(teacher, dtype)


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
@pytest.mark.parametrize(
    "classes, dtype, sm, form",
    [
        (1016, "float32", 90, "held"),
        (1017, "float32", 90, "staged"),
        (9000, "float32", 75, "streamed"),  # 72 kB
        (9000, "float16", 75, "staged"),
        (9000, "float32", 90, "staged"),
        (30000, "bfloat16", 120, "streamed"),
        (1000, "float64", 90, "strided"),
    ],
)
def test_every_form_is_chosen(classes, dtype, sm, form, divergence):
    student, teacher = plain_problem(classes, rows=2, dtype=dtype)
    options = {"divergence": divergence, "target": np.array([0, classes - 1]), "ce_weight": 1.0}
    ours = solve(student, teacher, options, (1, {"sm": sm}), grad_teacher=True)
    assert ours["form"] == form
    check(student, teacher, options, ours)


@pytest.mark.parametrize("form", ["held", "staged", "streamed", "strided"])
def test_every_order_of_threads_gives_the_same_bits(form):
    student, teacher = plain_problem(700)
    options = {"divergence": "jsd", "target": np.array([5, -100, 699]), "ce_weight": 1.0, "row_weight": np.ones(3)}
    how = {"form": form, "lanes": 32}
    results = [solve(student, teacher, options, (seed, how), grad_teacher=True) for seed in range(8)]
    for result in results[1:]:
        for name in ("loss", "parts", "grad_student", "grad_teacher"):
            np.testing.assert_array_equal(result[name], results[0][name], err_msg=name)


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
    for divergence in oracle.DIVERGENCES:
        options = {"divergence": divergence, "reduction": "none"}
        check(student, teacher, options, solve(student, teacher, options, grad_teacher=True))


def test_launches():
    """No kernel more than the problem needs."""

    def launches(**options):
        before = emulated.module().launch_count()
        solve(*plain_problem(10, rows=4), options)
        return emulated.module().launch_count() - before

    assert launches() == launches(reduction="none") == 2  # rows, reduction
    assert launches(mask=np.ones(4, bool)) == launches(target=np.zeros(4, int)) == 3  # rows are counted first
    assert launches(mask=np.ones(4, bool), reduction="sum") == 2


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
    truth = oracle.Estimate(before * per_row, np.abs(before * per_row))
    precision = PRECISION["float64" if dtype == "float64" else "float32"]
    oracle.close(decode(gradient), truth, precision, *STORED[dtype][:2])


@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    process = emulated.run_sanitized(["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__])
    assert process.returncode == 0, process.stdout + process.stderr
