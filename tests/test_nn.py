"""Every module is its function with the options held."""

import doctest
import inspect
import sys

import numpy as np
import pytest
import torch
from helpers import assert_equal, double, draw, labels

import kdkernels as kd

pytestmark = pytest.mark.numeric


def key(name):
    """Of a function and its module: InfoNCE belongs to info_nce."""
    return name.replace("_", "").lower()


MODULES = {key(name): getattr(kd.nn, name) for name in kd.nn.__all__}
PAIRS = {MODULES[key(name)]: getattr(kd, name) for name in kd.functional.__all__ if key(name) in MODULES}
OTHER = {
    "temperature": 3.0,
    "divergence": "reverse",
    "beta": 0.2,
    "skew": 0.2,
    "standardize": True,
    "shared_classes": 4,
    "teacher_kind": "probs",
    "target_eps": 0.01,
    "scale_by_t2": False,
    "ce_weight": 0.3,
    "kl_weight": 0.7,
    "label_smoothing": 0.1,
    "mask_ignored": True,
    "ignore_index": 2,
    "reduction": "sum",
    "dim": 1,
    "return_parts": True,
    "correct_prob": 0.9,
    "student_temperature": 2.0,
    "smoothing": 0.3,
    "convention": "others",
    "gamma": 0.5,
    "mode": "cwsm",
    "adjust": "lsr",
    "normalize": "l1",
    "t_min": 0.5,
    "symmetric": True,
    "ratio": 0.5,
    "eps": 0.01,
    "mix": "probs",
    "detach_targets": True,
    "pairwise": True,
    "return_attention": True,
    "transforms": 2,
    "weights": [0.5, 2.0],
    "group": None,  # of two processes: test_row_losses_group.py, test_similarity_group.py
}
FORMER_NAME = "normalise"  # of `normalize`: test_label_loss.py
ROWS = {
    "logits": draw(4, 6, 3, seed=4),
    "student": draw(4, 6, 3),
    "teacher": draw(4, 6, 3, seed=1).softmax(1),
    "students": [draw(4, 6), draw(4, 3, seed=5)],
    "teachers": [draw(4, 6, seed=1), draw(4, 3, seed=6)],
    "target": labels(4, 3, classes=6),
    "mask": labels(4, 3, classes=2) > 0,
    "row_weight": draw(4, 3, seed=2).abs(),
    "permutation": draw(4, 6, 3, seed=3).argsort(1),
    "start": 0,
    "stop": 6,
}
JOINT = {"joint_logits": draw(16, 12), "target": labels(8, classes=6)}
FEATURES = {
    **{name: draw(6, 4, seed=seed) for seed, name in enumerate(("student_query", "teacher_query", "query", "features"))},
    **{name: draw(5, 4, seed=seed) for seed, name in enumerate(("student_key", "teacher_key", "key"), 4)},
    "positive": labels(6, classes=5),
    "labels": labels(6, classes=2),
    "rank": labels(6, classes=5, seed=1),
    "logit_bias": draw(6, 5, seed=7),
    "embedding": draw(6, 4, seed=9),
    "bank": draw(9, 4, seed=10),
    "index": labels(6, 5, classes=9),
    "normalizer": 20.0,
    "mask": labels(6, classes=2, seed=2) > 0,
    "row_weight": draw(6, seed=8).abs(),
}
PEERS = {
    "peer_logits": draw(6, 3, 5),
    "branch_logits": draw(6, 3, 5),
    "leader_logits": draw(6, 5, seed=1),
    "query": draw(6, 3, 2, seed=2),
    "key": draw(6, 3, 2, seed=3),
    "gate": draw(6, 3, seed=4).softmax(1),
    "target": labels(6, classes=5),
}


def other(name, default):
    """An option that is not its default."""
    if name not in OTHER and type(default) is float:
        return 0.5 * default + 0.1
    return OTHER[name]


def arguments(module):
    """Tensors for its forward, in float64, and options other than the defaults."""
    parameters = inspect.signature(module).parameters
    options = {name: other(name, its.default) for name, its in parameters.items() if name != FORMER_NAME}
    if module is kd.nn.DKPPLoss:
        options["shared_classes"] = None  # of which permutations would have to be drawn
    if "teacher_kind" in options and "standardize" in options:
        options["standardize"] = False  # for logits alone
    if "normalize" in options and module is not kd.nn.DynamicTemperatureKL:
        options["normalize"] = False
    forward = inspect.signature(module.forward).parameters
    if "joint_logits" in forward:
        return {name: double(value) for name, value in JOINT.items()}, options
    if forward.keys() & {"peer_logits", "branch_logits"}:
        return {name: double(PEERS[name]) for name in forward if name in PEERS}, options
    if forward.keys() & FEATURES.keys() <= {"mask", "row_weight"}:
        return {name: double(ROWS[name]) for name in forward if name in ROWS}, options
    return {name: double(FEATURES[name]) for name in forward if name in FEATURES}, options


def test_every_function_has_its_module():
    assert set(PAIRS) == {*MODULES.values()} - {kd.nn.CRDLoss}  # has weights and memory: test_memory_bank_crd.py
    assert set(PAIRS.values()) == {getattr(kd, name) for name in kd.functional.__all__}


@pytest.mark.parametrize("module, function", PAIRS.items())
def test_same_options_and_defaults(module, function):
    held = {name: p.default for name, p in inspect.signature(module).parameters.items()}
    passed = {
        name: p.default for name, p in inspect.signature(module.forward).parameters.items() if name != "self"
    }
    expected = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    assert {**passed, **held} == expected


@pytest.mark.parametrize("function", PAIRS.values())
def test_same_signature_as_the_reference(function):
    twin = getattr(kd.reference, function.__name__)
    assert inspect.signature(twin) == inspect.signature(function)


@pytest.mark.parametrize("module, function", PAIRS.items())
def test_same_result(module, function):
    given, options = arguments(module)
    loss = module(**options)
    assert_equal(loss(**given), function(**given, **options))
    assert not list(loss.parameters()) and not loss.state_dict()
    for name, value in options.items():
        assert f"{name}={value!r}" in repr(loss)

    if "reduction" in options:
        loss.reduction = options["reduction"] = "none"  # a schedule may change an option
    assert_equal(loss(**given), function(**given, **options))


def test_permutations_of_shared_classes():
    given, _ = arguments(kd.nn.DKPPLoss)
    given["permutation"] = given["permutation"][:, :5].argsort(1)
    ours = kd.nn.DKPPLoss(shared_classes=5, dim=1)(**given)
    given.update(student=given["student"][:, :5], teacher=given["teacher"][:, :5])
    assert_equal(ours, kd.dkpp_loss(**given, dim=1))


@pytest.mark.parametrize("module", [kd.nn.SoftenedKL, kd.nn.KDLoss])
@pytest.mark.parametrize("options", [{"divergence": "jsd", "beta": 0.2}, {"standardize": True}, {"divergence": "tvd"}], ids=str)
def test_options_that_exclude_each_other(module, options):
    given, _ = arguments(module)
    function = PAIRS[module]
    ours = module(**options, dim=1)(**given)
    assert_equal(ours, function(**given, **options, dim=1))
    assert ours != function(**given, dim=1)


def test_numpy_scalars_in_a_graph():
    loss = kd.nn.SoftenedKL(temperature=np.float32(2.0), scale_by_t2=np.bool_(False))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    student, teacher = draw(4, 3), draw(4, 3, seed=1)
    for loss.temperature in np.linspace(1, 2, 2):
        expected = kd.softened_kl(student, teacher, temperature=float(loss.temperature), scale_by_t2=False)
        assert compiled(student, teacher) == expected


DOCUMENTED = sorted({its.__module__ for its in (*PAIRS, *PAIRS.values())})


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_of_the_docstrings(name):
    results = doctest.testmod(sys.modules[name], extraglobs={"torch": torch})
    assert not results.failed
    assert results.attempted or ".nn." in name
