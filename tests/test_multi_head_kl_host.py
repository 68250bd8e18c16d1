"""kdkernels._host on several heads, with every instruction set, against the float64 formulas of row_oracle.py."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from host_isa import host, isa  # noqa: F401  a fixture
from multi_head_problems import check, plain_problem, problems


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems())
def test_matches_the_formulas(isa, problem):
    students, teachers, options = problem
    check(students, teachers, options, host.multi_head_kl(students, teachers, **options))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_head_has_the_bits_of_its_loss_alone(isa, dtype):
    students, teachers = plain_problem((100, 7, 400, 1001), rows=9, dtypes=(dtype, dtype))
    ours = host.multi_head_kl(students, teachers, temperature=4.0)
    for at, (student, teacher) in enumerate(zip(students, teachers)):
        alone = host.row_loss(student, teacher, temperature=4.0)
        np.testing.assert_array_equal(ours["heads"][at], alone["loss"][0])
        np.testing.assert_array_equal(ours["grad_students"][at], alone["grad_student"])
        np.testing.assert_array_equal(ours["units"][at], alone["unit_student"])


def test_a_head_of_weight_0_adds_nothing_but_its_part(isa):
    students, teachers = plain_problem((10, 20))
    students[0][1, 3] = -np.inf  # infinite
    students[0][2] = np.nan
    for weights in ({"weights": [0.0, 2.0]}, {"weight_array": np.array([0.0, 2.0], np.float32)}):
        ours = host.multi_head_kl(students, teachers, **weights)
        alone = host.row_loss(students[1], teachers[1], temperature=3.0)
        assert ours["loss"] == 2 * alone["loss"] and np.isnan(ours["heads"][0])
        np.testing.assert_array_equal(ours["grad_students"][0], 0)


@pytest.mark.parametrize("bad", [{"weight_array": np.array([1.0, -1.0])}, {"denominator_array": 0.0}, {"denominator_array": -1.0}])
def test_numbers_of_a_device_that_are_out_of_range_make_the_loss_nan(isa, bad):
    ours = host.multi_head_kl(*plain_problem((10, 20)), **bad)
    assert np.isnan(ours["loss"]) and np.isnan(ours["grad_students"][1]).all()
    assert np.isnan(ours["heads"]).all() == ("denominator_array" in bad)


def test_lists_of_other_lengths_are_refused():
    students, teachers = plain_problem((10, 20))
    with pytest.raises(ValueError, match="one entry per head"):
        host.multi_head_kl(students, teachers[:1])
    with pytest.raises(ValueError, match="the same rows"):
        host.multi_head_kl([students[0], students[1][:1]], [teachers[0], teachers[1][:1]])
