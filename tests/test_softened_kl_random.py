"""The compiled op on problems drawn by hypothesis, against the float64 NumPy formulas of row_oracle.py."""

import math

import numpy as np
import row_oracle
import pytest
import torch
from helpers import FLOATS, draw, labels, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdkernels as kd

pytestmark = pytest.mark.numeric

# Half an ulp of 1 of the arithmetic; per storage dtype the same, and half its smallest number. The arithmetic
# in float32 takes probabilities below 1e-38 for 0, and they are multiplied by logarithms, T^2 and weights.
FLUSHED = 1e-38 * 1e4
ARITHMETIC = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
STORED = {
    torch.float32: (2.0**-24, FLUSHED),
    torch.float64: (2.0**-53, 0.0),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, FLUSHED),
}
SETTINGS = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def problems(draw_from):
    """Shape, class dimension, dtypes, spread of the logits, and options of softened_kl."""
    choose = lambda *values: draw_from(st.sampled_from(values))  # noqa: E731
    shape = draw_from(st.lists(st.integers(1, 5), min_size=0, max_size=3))
    dim = draw_from(st.integers(0, len(shape)))
    shape.insert(dim, draw_from(st.one_of(st.integers(1, 40), st.sampled_from((100, 257, 1000)))))
    divergence, kind = choose(*row_oracle.DIVERGENCES), choose(*row_oracle.SOURCES)
    classes = shape[dim]
    return dict(
        shape=tuple(shape),
        teacher_classes=choose(classes, classes, classes + 3),
        dim=choose(dim, dim - len(shape)),
        dtypes=(choose(*FLOATS), choose(*FLOATS)),
        # Far apart, float32 cannot hold the probabilities that the reverse divides by.
        spread=choose(0.1, 1.0, 3.0) if divergence in ("reverse", "jsd") else choose(0.1, 3.0, 30.0),
        permuted=draw_from(st.booleans()),
        rows=draw_from(st.sets(st.sampled_from(("mask", "row_weight", "temperature")))),
        seed=draw_from(st.integers(0, 1000)),
        options=dict(
            divergence=divergence,
            teacher_kind=kind,
            skew=choose(0.0, 0.1, 0.6) if divergence in ("forward", "reverse") else 0.0,
            standardize=kind == "logits" and draw_from(st.booleans()),
            shared_classes=draw_from(st.none() | st.integers(1, classes)),
            temperature=choose(1.0, 0.7, 4.0),
            beta=choose(0.5, 0.1, 0.9),
            target_eps=choose(0.0, 1e-3),
            scale_by_t2=draw_from(st.booleans()),
            reduction=choose(*row_oracle.REDUCTIONS),
        ),
    )


def build(problem, device):
    """Student, teacher and options of one problem."""
    shape, dim, seed = problem["shape"], problem["dim"], problem["seed"]
    options = dict(problem["options"], dim=dim)
    theirs = list(shape)
    if options["shared_classes"] is not None:
        theirs[dim] = problem["teacher_classes"]
    logits = [draw(*sizes, seed=seed + i, scale=problem["spread"]) for i, sizes in enumerate((shape, theirs))]
    if options["teacher_kind"] != "logits":
        logits[1] = (
            logits[1].log_softmax(dim) if options["teacher_kind"] == "log_probs" else logits[1].softmax(dim)
        )
    logits = [tensor.to(dtype).to(device) for tensor, dtype in zip(logits, problem["dtypes"])]
    if problem["permuted"]:  # the same values, the last dimension slowest in memory
        logits = [tensor.movedim(-1, 0).contiguous().movedim(0, -1) for tensor in logits]
    rows = logits[0].sum(dim).shape
    if "mask" in problem["rows"]:
        options["mask"] = labels(*rows, classes=3, seed=seed, device=device) > 0
    if "row_weight" in problem["rows"]:
        options["row_weight"] = draw(*rows, seed=seed + 2, device=device)
    if "temperature" in problem["rows"]:
        options["temperature"] = draw(*rows, seed=seed + 3, device=device).abs() + 0.5
    return *logits, options


def as_rows(tensor, dim):
    """[rows, C] in float64 NumPy."""
    moved = tensor.detach().double().cpu().movedim(dim, -1)
    return moved.reshape(-1, moved.shape[-1]).numpy()


def expectation(student, teacher, options, **more):
    options = dict(options, **more)
    dim = options.pop("dim")
    if "teacher_kind" in options:
        options["source"] = options.pop("teacher_kind")
    if torch.is_tensor(options["temperature"]):
        options["row_temperature"] = options.pop("temperature")
    for name, value in options.items():
        if torch.is_tensor(value):
            options[name] = value.cpu().numpy().reshape(-1)
            if name not in ("mask", "target"):
                options[name] = options[name].astype(np.float64)
    return row_oracle.row_loss(as_rows(student, dim), as_rows(teacher, dim), **options)


def compare(results, truth, dim):
    loss, *gradients = results
    # An exponential (2 ulp: four roundings), the sum, the quotient, the product; in float64 the formulas of
    # the oracle round as often themselves.
    arithmetic, factor = ARITHMETIC[loss.dtype], 16 if loss.dtype is torch.float64 else 8
    row_oracle.close(
        loss.double().cpu().numpy().reshape(-1), truth["loss"], arithmetic, *STORED[loss.dtype], factor
    )
    for gradient, name in zip(gradients, ("grad_student", "grad_teacher")):
        rounding, tiny = STORED[gradient.dtype]
        if gradient.dtype is torch.float16:  # stored in units of its row before (csrc/row_scales.h)
            tiny = tiny + np.abs(truth[name].value).max(-1, keepdims=True, initial=0) * 2.0**-37
        row_oracle.close(as_rows(gradient, dim), truth[name], arithmetic, rounding, tiny, factor)


@SETTINGS
@given(problem=problems())
def test_softened_kl(machine, problem):
    student, teacher, options = build(problem, machine)
    results = run(machine, kd.softened_kl, student, teacher, **options)
    compare(results, expectation(student, teacher, options), problem["dim"])


@SETTINGS
@given(
    problem=problems(),
    smoothing=st.sampled_from((0.0, 0.1, 1.0)),
    weights=st.sampled_from(((1.0, 1.0), (0.3, 2.0), (0.0, 1.0), (1.0, 0.0))),
    ignored=st.booleans(),
)
def test_kd_loss(machine, problem, smoothing, weights, ignored):
    problem["options"].update(teacher_kind="logits", scale_by_t2=True)
    student, teacher, options = build(problem, machine)
    for name in ("teacher_kind", "scale_by_t2"):
        del options[name]
    rows, classes = student.sum(problem["dim"]).shape, student.shape[problem["dim"]]
    target = labels(*rows, classes=classes, seed=problem["seed"], device=machine)
    if ignored:
        target = torch.where(
            labels(*rows, classes=2, seed=problem["seed"] + 1, device=machine) > 0, target, -100
        )
    options.update(label_smoothing=smoothing, ce_weight=weights[0], kl_weight=weights[1])
    results = run(machine, kd.kd_loss, student, teacher, target, **options)
    truth = expectation(student, teacher, options, target=target)
    compare(results, truth, problem["dim"])
    assert not any(math.isnan(x) for x in results[0].flatten().tolist())
