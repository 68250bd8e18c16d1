"""The CPU kernels of the memory bank on NumPy arrays with every instruction set, against the float64 formulas of
memory_bank_oracle.py. No torch tensor is made.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from host_isa import host, isa  # noqa: F401  a fixture
from memory_bank_oracle import WIDE, check, numbered, plain_problem, problems


def solve(embedding, bank, index, options, **more):
    return host.memory_bank_nce(embedding, bank, index, **numbered(options), **more)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems(), st.booleans())
def test_matches_the_formulas(isa, problem, gradient):
    embedding, bank, index, options = problem
    check(*problem, solve(embedding, bank, index, options, grad_embedding=gradient))


@pytest.mark.parametrize("width", WIDE)
def test_wide_rows(isa, width):
    embedding, bank, index = plain_problem(width=width)
    options = {"temperature": 0.07, "eps": 1e-7}
    check(embedding, bank, index, options, solve(embedding, bank, index, options))


def test_at_full_scale(isa):
    """16,384 negatives at the paper's settings: float32 sums are as exact as a few roundings."""
    embedding, bank, index = plain_problem(rows=2, columns=16385, entries=50000)
    options = {"temperature": 0.07, "eps": 1e-7}
    ours = solve(embedding, bank, index, options)
    check(embedding, bank, index, options, ours)
    double = solve(embedding.astype(np.float64), bank.astype(np.float64), index, options)
    np.testing.assert_allclose(ours["loss"], double["loss"], rtol=5e-7)


def test_bad_arguments():
    embedding, bank, index = plain_problem()
    for bad in (50, -1, 2**40):
        changed = index.copy()
        changed[1, 3] = bad
        with pytest.raises(ValueError, match=rf"index contains {bad}, valid entries are 0\.\.49"):
            solve(embedding, bank, changed, {})
    with pytest.raises(ValueError, match="matrices of one width"):
        solve(embedding[:, :5], bank, index, {})
    with pytest.raises(ValueError, match="a row of 2 or more per embedding"):
        solve(embedding, bank, index[:, :1], {})
    with pytest.raises(ValueError, match="neighbours in memory"):
        solve(embedding[:, ::2], bank[:, ::2], index, {})
