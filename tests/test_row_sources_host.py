"""kdkernels._host on the sources label, permuted and adjusted, with every instruction set, against the float64 formulas of
row_oracle.py.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from host_isa import host, isa  # noqa: F401  a fixture
from row_source_problems import check, numbered, source_problems


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(source_problems())
def test_matches_the_formulas(isa, problem):
    student, teacher, options = problem
    check(student, teacher, options, host.row_loss(student, teacher, dim=1, **numbered(options)))


@pytest.mark.parametrize(
    "row, rule",
    [
        ([0, 1, 2, 3, 5], "row 1 holds 5"),
        ([0, 1, 2, 3, -1], "row 1 holds -1"),
        ([0, 1, 2, 3, 3], "row 1 holds 3 twice"),
    ],
)
def test_what_is_no_permutation_is_refused(row, rule):
    logits = np.zeros((2, 5), np.float32)
    options = {"permutation": np.array([[4, 3, 2, 1, 0], row])}
    with pytest.raises(ValueError, match=r"each class 0\.\.4 once in every row, but " + rule):
        host.row_loss(logits, logits, source=4, divergence=3, source_options=options)
