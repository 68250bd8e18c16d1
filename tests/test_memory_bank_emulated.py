"""The CUDA kernels of the memory bank, emulated (docs/emulation.md), against the float64 formulas of memory_bank_oracle.py:
problems drawn by hypothesis in every dtype, memory layout and option, under a random order of threads.
"""

import emulated
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_bank_oracle import COLUMNS, WIDE, check, plain_problem, problems, solve_emulated

EXAMPLES = 40 if emulated.VARIANT == "sanitized" else 200
AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(problems(), st.integers(0, 2**32), st.booleans())
def test_matches_the_formulas(problem, seed, gradient):
    check(*problem, solve_emulated(*problem, seed, grad_embedding=gradient))


@pytest.mark.long
@settings(max_examples=10 * EXAMPLES, **AT_LEISURE)
@given(problems(st.integers(1, 2200), st.sampled_from(COLUMNS) | st.integers(2, 1200)), st.integers(0, 2**32))
def test_matches_the_formulas_at_length(problem, seed):
    check(*problem, solve_emulated(*problem, seed))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("width", WIDE)
def test_wide_rows(width, dtype):
    """More features than the registers of a warp hold are summed piece by piece."""
    embedding, bank, index = plain_problem(rows=1, width=width, columns=10, dtype=dtype)
    options = {"temperature": 0.07, "eps": 1e-7}
    check(embedding, bank, index, options, solve_emulated(embedding, bank, index, options, seed=1))


def test_every_order_of_threads_gives_the_same_bits():
    problem = (*plain_problem(columns=600), {"temperature": 0.07})
    results = [solve_emulated(*problem, seed) for seed in range(6)]
    for result in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)


@pytest.mark.parametrize("bad", [50, -1, 2**40])
def test_an_index_that_is_none_makes_its_row_nan(bad):
    embedding, bank, index = plain_problem(rows=3)
    index[1, 7] = bad
    options = {"temperature": 0.07, "reduction": "none", "normalizer": 1e3}
    ours = solve_emulated(embedding, bank, index, options)
    check(embedding, bank, index, options, ours)
    np.testing.assert_array_equal(np.isnan(ours["loss"]), [False, True, False])
    np.testing.assert_array_equal(np.isnan(ours["grad_embedding"]).all(1), [False, True, False])
    assert np.isnan(solve_emulated(embedding, bank, index, {**options, "normalizer": None})["normalizer"])


def test_launches():
    """Exponentials, Z; scores, rows, loss."""
    before = emulated.module().launch_count()
    solve_emulated(*plain_problem(), {})
    solve_emulated(*plain_problem(), {"reduction": "none"})
    assert emulated.module().launch_count() - before == 5 + 4


@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    process = emulated.run_sanitized(["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__])
    assert process.returncode == 0, process.stdout + process.stderr
