"""The CUDA kernels of similarity, emulated (docs/emulation.md), against the float64 formulas of similarity_oracle.py: problems
drawn by hypothesis with every dtype, memory layout, option and launch plan, under a random order of threads.

In three sizes: in this process, in one with AddressSanitizer and UBSan (test_sanitized), and ten times as long (-m long).
"""

import emulated
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_problems import encode
from similarity_problems import check, check_ranks, dtypes_of, gradients, numbered, rank_problems, similarity_problems

EXAMPLES = 20 if emulated.VARIANT == "sanitized" else 150
AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
# Around a tile of 128 and two of them, and around a step of the depth: 16 numbers, or 32 halves.
ROWS = st.sampled_from([0, 1, 127, 128, 129, 192, 257]) | st.integers(0, 70)
KEYS = st.sampled_from([1, 127, 128, 129, 192, 257]) | st.integers(1, 70)
WIDTHS = st.sampled_from([1, 8, 16, 17, 32, 33, 64]) | st.integers(1, 70)
# Half of the distance between neighbours of 1, of what gradients are products of.
PRODUCTS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


@st.composite
def launches(draw):
    """The order of threads, the launch plan (0: as planned), and for what GPU."""
    plan = {name: draw(st.integers(0, 3)) for name in ("row_shares", "column_shares", "band_tiles", "product_shares")}
    return draw(st.integers(0, 2**32)), {**plan, "sm": draw(st.sampled_from([75, 90]))}


def solve(query, key, options, how=(0, {}), **more):
    """The emulated kernels' results."""
    seed, how = how
    emulated.module().set_seed(seed)
    if options["target"] == "teacher" or options.get("scale_by_t2"):  # as in test_similarity_host.py
        more["grad_temperature"] = False
    return emulated.module().similarity(query, key, **numbered(options), **how, **more)


def matches_the_formulas(problem, launch, gradients):
    query, key, options = problem
    dtypes = dtypes_of(query, key, options)
    coarse = PRODUCTS.get(min(dtypes)) if len(dtypes) == 1 and launch[1]["sm"] >= 80 else None
    check(*problem, solve(*problem, launch, **gradients), product_precision=coarse)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(similarity_problems(ROWS, KEYS, WIDTHS), launches(), gradients)
def test_matches_the_formulas(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


@pytest.mark.long
@settings(max_examples=10 * EXAMPLES, **AT_LEISURE)
@given(similarity_problems(ROWS, KEYS, WIDTHS), launches(), gradients)
def test_matches_the_formulas_at_length(problem, launch, gradients):
    matches_the_formulas(problem, launch, gradients)


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(rank_problems(ROWS, KEYS, WIDTHS), launches())
def test_ranks(problem, launch):
    query, key, positive, normalize, exact = problem
    seed, how = launch
    emulated.module().set_seed(seed)
    check_ranks(*problem, emulated.module().similarity_rank(query, key, positive, normalize, sm=how["sm"]))


def plain_problem(dtype="float32", target="positive"):
    rng = np.random.default_rng(0)
    query, key = (encode(rng.normal(size=(rows, 40)).astype(np.float32), dtype) for rows in (150, 200))
    options = {"target": target, "temperature": 0.1}
    if target == "labels":
        options.update(query_labels=rng.integers(0, 9, 150), key_labels=rng.integers(0, 9, 200))
    if target == "teacher":
        options.update(teacher_query=query[::-1].copy(), teacher_key=key[::-1].copy())
    return query, key, options


@pytest.mark.parametrize("target", ["positive", "labels", "teacher"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_every_order_of_threads_gives_the_same_bits(dtype, target):
    problem = plain_problem(dtype, target)
    problem[2]["symmetric"] = target == "positive"
    how = {"row_shares": 2, "column_shares": 2, "band_tiles": 1, "product_shares": 2}
    results = [solve(*problem, (seed, how), grad_temperature=True) for seed in range(4)]
    for result in results[1:]:
        for name in ("loss", "grad_query", "grad_key", "grad_temperature"):
            np.testing.assert_array_equal(result[name], results[0][name], err_msg=name)


@pytest.mark.parametrize("plan", [{"band_tiles": 1}, {"product_shares": 2}, {"row_shares": 2, "column_shares": 2}], ids=str)
@pytest.mark.parametrize("target", ["positive", "labels", "teacher"])
def test_bands_and_shares_add_up(target, plan):
    query, key, options = plain_problem(target=target)
    options["symmetric"] = target == "positive"
    check(query, key, options, solve(query, key, options, (1, plan)))


def test_equal_student_and_teacher_have_no_loss_and_no_gradient():
    query, key, options = plain_problem(target="teacher")
    options.update(teacher_query=query, teacher_key=key)
    ours = solve(query, key, options)
    assert ours["loss"][0] == 0 and not ours["grad_query"].any() and not ours["grad_key"].any()


@pytest.mark.parametrize("sm, allow_tf32, least, most", [(90, False, 0, 1e-6), (90, True, 1e-5, 1e-2), (75, True, 0, 1e-6)])
def test_tf32_only_where_it_is_allowed_and_known(sm, allow_tf32, least, most):
    query, key, options = plain_problem()
    ours = solve(query, key, options, (1, {"sm": sm, "allow_tf32": allow_tf32}))["grad_query"]
    exact = solve(query.astype(np.float64), key.astype(np.float64), options)["grad_query"]
    assert least <= np.abs(ours - exact).max() / np.abs(exact).max() < most


@pytest.mark.parametrize("positive", [-1, 200, 2**40])
def test_a_positive_that_is_none_makes_the_loss_nan(positive):
    query, key, options = plain_problem()
    options["positive"] = np.arange(150)
    options["positive"][3] = positive
    ours = solve(query, key, {**options, "reduction": "none"})
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(ours["loss"])), [3])
    assert np.isnan(solve(query, key, options)["loss"]).all()


@pytest.mark.parametrize("target", ["positive", "symmetric", "labels", "teacher"])
def test_tiles_without_a_query_that_counts_are_skipped(target):
    """Seen by the barriers, of which every step of a product of tiles has one."""
    rng = np.random.default_rng(0)
    query, key, teacher = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (384, 40, 384))
    options = {"target": "positive" if target == "symmetric" else target, "symmetric": target == "symmetric"}
    options.update(query_labels=np.arange(384) % 5, key_labels=np.arange(40) % 5, positive=np.arange(384) % 40)
    if target == "teacher":
        options.update(teacher_query=teacher, teacher_key=key)

    def barriers(mask, key=key):
        before = emulated.module().barrier_count()
        ours = solve(query, key, {**options, "mask": mask})
        check(query, key, {**options, "mask": mask}, ours) if np.isfinite(key).all() else None
        return emulated.module().barrier_count() - before, ours

    none, first, two, all_three = (barriers(np.arange(384) < counted)[0] for counted in (0, 1, 200, 300))
    assert all_three - two == two - first > 10
    assert first - none == two - first + 1  # the first step of the keys' products
    assert all_three == barriers(None)[0]
    # A tile apart: the keys' products begin again behind the one that is left out.
    assert barriers((np.arange(384) < 5) | (np.arange(384) == 300))[0] == two + 1
    # Keys that nobody is compared with may hold anything.
    _, ours = barriers(np.zeros(384, bool), np.full_like(key, np.nan))
    assert ours["loss"] == 0 and not ours["grad_query"].any() and not ours["grad_key"].any()


def test_launches():
    """No kernel more than the problem needs."""

    def launches(**more):
        query, key, options = plain_problem()
        before = emulated.module().launch_count()
        solve(query, key, options, **{"grad_query": False, "grad_key": False, **more})
        return emulated.module().launch_count() - before

    assert launches() == 5  # two norms, sweep, rows, batch
    assert launches(normalize=False) == 3
    assert launches(grad_query=True) == 5 + 3  # band, products, finish
    assert launches(grad_query=True, grad_key=True) == 5 + 5
    assert launches(grad_temperature=True) == 5 + 4
    assert launches(symmetric=True, positive=np.arange(150)) == 5 + 3  # columns, their sums, their weights


@pytest.mark.long
@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    arguments = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-m", "not long", __file__]
    process = emulated.run_sanitized(arguments)
    assert process.returncode == 0, process.stdout + process.stderr
