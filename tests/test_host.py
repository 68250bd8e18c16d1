"""kdkernels._host: the CPU kernels on NumPy arrays with every instruction set, against the float64 formulas of row_oracle.py, and
the launch plans of the CUDA kernels. No torch tensor is made.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from host_isa import host, isa  # noqa: F401  a fixture
from row_problems import FEATURES, FLOATS, check, decode, encode, gradients, numbered, plain_problem, problems, sliced


def valid_labels(options, classes):
    """The CPU refuses what the emulated CUDA kernels make NaN of."""
    target = options.get("target")
    if target is not None:
        options["target"] = np.where((target < 0) | (target >= classes), options["ignore_index"], target)
    return options


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems(), gradients)
def test_matches_the_formulas(isa, problem, gradients):
    student, teacher, options = problem
    options = valid_labels(options, student.shape[1])
    check(student, teacher, options, host.row_loss(student, teacher, dim=1, **numbered(options), **gradients))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems(features=FEATURES), gradients)
def test_the_options_of_the_two_terms(isa, problem, gradients):
    test_matches_the_formulas.hypothesis.inner_test(isa, problem, gradients)


@pytest.mark.parametrize("classes", [1, 15, 16, 17, 1000, 32000, 262144])
def test_long_and_ragged_rows(isa, classes):
    student, teacher = plain_problem(classes, rows=2)
    options = {"target": np.array([0, classes - 1]), "ce_weight": 1.0, "label_smoothing": 0.1}
    check(student, teacher, options, host.row_loss(student, teacher, dim=1, grad_teacher=True, **options))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 31, 48, 100, 1000])
def test_the_commonest_loss(isa, classes, dtype):
    """Forward KL to a constant teacher, alone and with labels: rows of their own kind (cpu/forward_rows-inl.h)."""
    student, teacher = (decode(logits) for logits in plain_problem(classes, rows=6, dtype=dtype))
    if classes > 1:
        student[0, 0] = teacher[0, 0] = teacher[1, 1] = -np.inf
    student, teacher = encode(student, dtype), encode(teacher, dtype)
    target = np.array([classes - 1, 0, classes // 2, -100, classes // 3, classes - 1])
    labels = {"target": target, "ignore_index": -100, "ce_weight": 0.5}
    mask = np.array([True, True, False, True, True, True])
    cases = [{}, labels, {**labels, "label_smoothing": 0.1, "mask": mask}, {**labels, "ce_weight": 0.0}]
    cases += [{**labels, "temperature": temperature} for temperature in (1.0, 2.0, 3.0)]  # with and without powers
    for options in cases:
        options = {"temperature": 4.0, "reduction": "none", **options}
        check(student, teacher, options, host.row_loss(student, teacher, dim=1, **numbered(options)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_that_two_strides_lead_to(isa, dtype):
    student, teacher = plain_problem(37, rows=8, dtype=dtype)
    options = {"target": np.arange(8), "ce_weight": 0.5, "grad_teacher": True}
    expected = host.row_loss(student, teacher, dim=1, **options)
    ours = host.row_loss(sliced(student), sliced(teacher), dim=2, **options)
    for name in ("loss", "grad_student", "grad_teacher"):
        np.testing.assert_array_equal(ours[name].reshape(expected[name].shape), expected[name])
    # Positions after the classes: [1, C, 2, 4].
    behind = [sliced(logits).transpose(2, 0, 1)[None] for logits in (student, teacher)]
    ours = host.row_loss(*behind, dim=1, **options)
    np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-6)


def test_a_test_runs_on_the_instruction_set_it_names(isa):
    assert host.cpu_isa() == isa


def test_instruction_sets_have_names():
    with pytest.raises(ValueError, match="instruction set must be one of base.* on this machine, got avx10"):
        host.set_isa("avx10")


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"target": np.array([0, 7])}, r"target contains 7, valid labels are 0\.\.4 \(or ignore_index=-100\)"),
        ({"target": np.array([0])}, "target must have one value per row"),
        ({"mask": np.array([True])}, "mask must have one value per row"),
        ({"row_weight": np.ones(3)}, "row_weight must have one value per row"),
        ({"groups": 3}, "groups must divide the first dimension"),
        ({"dim": 2}, "dim must name a dimension of logits"),
    ],
)
def test_bad_arguments(arguments, rule):
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match=rule):
        host.row_loss(logits, logits, **arguments)


def test_other_shapes_and_dtypes_are_refused():
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="equal shapes"):
        host.row_loss(logits, logits[:, :4])
    with pytest.raises(ValueError, match="at least 1 class"):
        host.row_loss(logits[:, :0], logits[:, :0])
    with pytest.raises(TypeError, match="logits must be float32, .* got int64"):
        host.row_loss(logits.astype(np.int64), logits)


@pytest.mark.parametrize(
    "classes, dtype, sm, form, lanes, cluster",
    [
        (10, "bfloat16", 90, "held", 1, 1),
        (100, "float32", 90, "held", 4, 1),
        (1000, "float32", 90, "held", 32, 1),
        (2000, "float32", 90, "staged", 128, 1),
        (32000, "bfloat16", 90, "staged", 4 * 128, 4),
        (128256, "bfloat16", 90, "staged", 8 * 256, 8),
        (21841, "float32", 90, "staged", 4 * 128, 4),
        (32000, "bfloat16", 80, "staged", 512, 1),
        (32000, "bfloat16", 75, "streamed", 512, 1),
        (2**20, "bfloat16", 90, "streamed", 512, 1),
        (1000, "float64", 90, "strided", 32, 1),
    ],
)
def test_launch_plans(classes, dtype, sm, form, lanes, cluster):
    plan = host.launch_plan("row_loss", 8192, classes, dtype, sm)
    assert (plan["form"], plan["lanes"], plan["cluster"]) == (form, lanes, cluster)
    assert plan["blocks"] * plan["threads"] // plan["lanes"] >= 8192
    assert plan["threads"] % 32 == 0 and plan["shared_bytes"] <= 225 * 1024
    # Where a cluster shares a row, four blocks are on a multiprocessor, unless a row is too large for that.
    assert cluster in (1, 8) or plan["shared_bytes"] <= 49 * 1024


@pytest.mark.parametrize("path, shared_kib", [("forward", 0), ("general", 32), ("label", 16), ("permuted", 32), ("adjusted", 32)])
def test_rows_of_a_path_stay_in_registers_or_in_shared_memory(path, shared_kib):
    plan = host.launch_plan("row_loss", 8192, 1000, path=path)
    assert (plan["form"], plan["lanes"], plan["shared_bytes"]) == ("held", 32, shared_kib * 1024)


@pytest.mark.parametrize("queries, keys, width", [(1, 1, 1), (192, 64, 128), (16384, 16384, 256), (65536, 65536, 512)])
@pytest.mark.parametrize("dtype, size", [("float32", 4), ("float16", 4), ("bfloat16", 2)])
def test_similarity_plans_keep_a_band(queries, keys, width, dtype, size):
    plan = host.launch_plan("similarity", queries, keys, dtype, width=width)
    features = (queries + keys) * width * 2
    assert plan["band_rows"] % 128 == 0 and plan["band_bytes"] == plan["band_rows"] * keys * size
    assert plan["band_bytes"] <= max(features, 2**24)
    assert 1 <= plan["row_shares"] <= -(-keys // 128) and 1 <= plan["product_shares"] <= -(-keys // 128)


@pytest.mark.parametrize("classes", [1, 10, 100, 1000, 32768])
@pytest.mark.parametrize("peers", [1, 3, 8, 15, 16, 31, 32])
@pytest.mark.parametrize("dtype, size", [("float64", 8), ("bfloat16", 4)])
@pytest.mark.parametrize("sm, most", [(75, 62), (86, 97), (90, 225), (120, 97)])
def test_peer_plans_fit_a_multiprocessor(classes, peers, dtype, size, sm, most):
    plan = host.launch_plan("peer_ensemble", 256, classes, dtype, sm, peers=peers)
    assert plan["threads"] == 32 * plan["teams"] * plan["parts"] <= 512 and plan["teams"] <= peers + 1
    assert plan["tile"] % 8 == 0 and 2 * (peers + 1) * plan["tile"] * size < plan["shared_bytes"] <= most * 1024


def test_a_thousand_classes_of_eight_peers_stay_in_shared_memory():
    plan = host.launch_plan("peer_ensemble", 256, 1000, "bfloat16", peers=8)
    assert plan["tile"] == 1000 and 3 * plan["shared_bytes"] < 225 * 1024


def test_launch_plans_of_nothing_known():
    with pytest.raises(ValueError, match="family must be row_loss, similarity or peer_ensemble, got kl"):
        host.launch_plan("kl", 1, 1)
    with pytest.raises(ValueError, match="dtype must be .* got int8"):
        host.launch_plan("row_loss", 1, 1, "int8")
    with pytest.raises(ValueError, match="path must be forward, .* got backward"):
        host.launch_plan("row_loss", 1, 1, path="backward")
