"""Rows that come in parts (csrc/row_measure.h) with every instruction set: parts of the classes measured apart, merged and
finished apart are the whole row. The CPU kernels on NumPy arrays.
"""

import numpy as np
import pytest
import row_oracle
from host_isa import host, isa  # noqa: F401  a fixture
from row_problems import PRECISION, as_rows, make_logits, make_teacher, numbered

BY_LOG_Q = 6  # first of the sums that the gradients need


def in_parts(student, teacher, cuts, options):
    """Loss, parts and gradients of [rows, C, 1], the classes cut at these places."""
    ranges = list(zip((0, *cuts), (*cuts, student.shape[1])))
    calls = [
        {"student": student[:, a:b], "teacher": teacher[:, a:b], "dim": 1, "first_class": a, "grad_teacher": True, **options}
        for a, b in ranges
    ]
    measured = [host.row_measure(**call) for call in calls]
    merged = measured[0]
    for other in measured[1:]:
        merged = host.add_row_measures(merged, other, temperature=options["temperature"])
    by_parts = [host.row_measure(measures=merged, **call) for call in calls]
    np.testing.assert_array_equal(by_parts[0][:, :BY_LOG_Q], merged[:, :BY_LOG_Q])
    merged[:, BY_LOG_Q:] = sum(part[:, BY_LOG_Q:] for part in by_parts)
    finished = [host.row_loss(measures=merged, **call) for call in calls]
    found = {name: sum(part[name].astype(np.float64) for part in finished) for name in ("loss", "parts")}
    for name in ("grad_student", "grad_teacher"):
        found[name] = np.concatenate([part[name] for part in finished], 1).astype(np.float64)
    return found


def compare(student, teacher, cuts, options):
    ours = in_parts(student, teacher, cuts, numbered(options))
    truth = row_oracle.row_loss(as_rows(student), as_rows(teacher), **options)
    precision = PRECISION[student.dtype.name]
    # Twice what a whole row is allowed: a part has sums of its own, and a share of the loss that is rounded.
    for name in ("loss", "parts"):
        row_oracle.close(ours[name], truth[name], precision, precision, factor=8)
    for name in ("grad_student", "grad_teacher"):
        row_oracle.close(as_rows(ours[name]), truth[name], precision, precision, factor=8)


@pytest.mark.parametrize("source", row_oracle.SOURCES)
@pytest.mark.parametrize("divergence", row_oracle.DIVERGENCES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_halves_make_a_whole(isa, source, divergence, dtype):
    rng = np.random.default_rng(0)
    shape = (6, 90, 1)
    student = make_logits(rng, shape, 3, 0.1).astype(dtype)
    teacher = make_teacher(rng, shape, 3, 0, source).astype(dtype)
    labels = {"target": np.array([0, 44, 45, 89, -100, 7]), "ce_weight": 0.5, "label_smoothing": 0.1}
    options = {"source": source, "divergence": divergence, "temperature": 4.0, **labels}
    for more in ({"reduction": "none"}, {"denominator": np.array([5.0])}, {"target_eps": 0.01, "mask": np.arange(6) != 2}):
        compare(student, teacher, (45,), {**options, **more})


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_skewed_thirds_of_rows_far_apart(isa, divergence):
    student, teacher = np.random.default_rng(1).normal(size=(2, 4, 1000, 1)).astype(np.float32) * 3
    student[0, 40:] += 1e4
    teacher[1, :400] -= 1e4
    options = {"divergence": divergence, "temperature": 2.0, "skew": 0.1, "target": np.arange(4), "ce_weight": 1.0}
    compare(student, teacher, (16, 500), options)


def test_parts_without_a_class(isa):
    """Logits of -inf in one half of a row, of either: a maximum of -inf, and sums that are no numbers."""
    student, teacher = np.random.default_rng(2).normal(size=(2, 3, 40, 1)).astype(np.float32)
    student[0, :20] = teacher[0, :20] = teacher[1, 20:] = -np.inf
    options = {"divergence": "forward", "temperature": 1.0, "target": np.array([30, 3, 3]), "ce_weight": 1.0}
    compare(student, teacher, (20,), options)
