"""The CPU kernels of peer ensembles on NumPy arrays with every instruction set, against the formulas of
peer_ensemble_oracle.py. No torch tensor is made.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from host_isa import host, isa  # noqa: F401  a fixture
from peer_ensemble_oracle import (
    MIXES,
    check,
    check_mixture,
    gradients,
    mixture_problems,
    numbered,
    plain_problem,
    problems,
)

AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
# Roundings of the oracle's scale. The largest error seen in 8,000 losses is 1.7; a mixture of 32 equal peers adds them up.
FACTOR, MIXTURE_FACTOR = 2, 4
# (weights, mix) that occur.
KINDS = [("attention", "logits"), ("attention", "probs"), ("gate", "logits")] + [("others", mix) for mix in MIXES]


def solve(peer_logits, target, options, **more):
    return host.peer_ensemble_loss(peer_logits, target, **numbered(options), **more)


def mix(peer_logits, options, **more):
    return host.peer_mixture(peer_logits, **numbered(options), **more)


def problem_of_kind(weights, mix, **sizes):
    """plain_problem with other weights."""
    peer_logits, target, options = plain_problem(**sizes)
    options |= {"weights": weights, "mix": mix}
    if weights != "attention":
        options = {name: value for name, value in options.items() if name not in ("leader", "query", "key")}
    if weights == "gate":
        gate = np.abs(peer_logits[..., 0]) + 1
        options["gate"] = gate / gate.sum(1, keepdims=True)
    return peer_logits, target, options


def assert_equal(ours, others):
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


@settings(max_examples=200, **AT_LEISURE)
@given(problems(), gradients)
def test_matches_the_formulas(isa, problem, gradients):
    check(*problem, solve(*problem, **gradients), factor=FACTOR)


@settings(max_examples=100, **AT_LEISURE)
@given(mixture_problems())
def test_mixture_matches_the_formulas(isa, problem):
    check_mixture(*problem, mix(*problem), factor=MIXTURE_FACTOR)


@pytest.mark.long
@settings(max_examples=5000, **AT_LEISURE)
@given(problems(), gradients)
def test_matches_the_formulas_at_length(isa, problem, gradients):
    check(*problem, solve(*problem, **gradients), factor=FACTOR)


@pytest.mark.long
@settings(max_examples=3000, **AT_LEISURE)
@given(mixture_problems())
def test_mixture_matches_the_formulas_at_length(isa, problem):
    check_mixture(*problem, mix(*problem), factor=MIXTURE_FACTOR)


@pytest.mark.parametrize("target_eps", [0.0, 1e-7, 0.1])
@pytest.mark.parametrize("weights, mix", KINDS)
def test_every_kind(isa, weights, mix, target_eps):
    """What the drawn problems may miss: all of these together."""
    peer_logits, target, options = problem_of_kind(weights, mix, classes=37)
    leaderless = {name: value for name, value in options.items() if name != "leader"}
    for some in (options, leaderless):
        for more in ({}, {"detach_targets": True}, {"kl_weight": 0.3, "temperature": 1.0}, {"kl_weight": 0.0}):
            problem = peer_logits, target, {**some, "target_eps": target_eps, **more}
            check(*problem, solve(*problem), factor=FACTOR)


# More classes than a block of sums has.
@pytest.mark.parametrize("weights, mix", KINDS)
def test_many_classes(isa, weights, mix):
    problem = problem_of_kind(weights, mix, samples=1, classes=5003)
    check(*problem, solve(*problem), factor=FACTOR)


@pytest.mark.parametrize("weights, mix", KINDS)
def test_samples_do_not_notice_each_other(isa, weights, mix):
    """To the bit: four samples together, and each alone but for the mean, a division by a power of 2."""
    peer_logits, target, options = problem_of_kind(weights, mix, samples=4, classes=37)
    together = solve(peer_logits, target, options)
    for n in range(4):
        own = {name: value[n : n + 1] if isinstance(value, np.ndarray) else value for name, value in options.items()}
        alone = solve(peer_logits[n : n + 1], target[n : n + 1], own)
        for name, gradient in alone.items():
            if name.startswith("grad"):
                np.testing.assert_array_equal(together[name][n], gradient[0] / 4, err_msg=name)


@pytest.mark.parametrize("weights, mix", KINDS)
def test_no_softmax_notices_a_shift(isa, weights, mix):
    """To the bit, though the logits are ten thousand times as large. They keep their digits: they are multiples of 1/64."""
    peer_logits, target, options = problem_of_kind(weights, mix, classes=37)
    peer_logits = np.round(peer_logits * 64) / 64
    moved = peer_logits + np.float32([[[8192], [-16384], [512]]])
    assert_equal(solve(peer_logits, target, options), solve(moved, target, options))


@pytest.mark.parametrize("weights, mix", KINDS)
def test_a_class_that_all_lack_might_as_well_not_be_there(isa, weights, mix):
    peer_logits, target, options = problem_of_kind(weights, mix, classes=37)
    options["target_eps"] = 0.0
    if weights == "gate":
        options["gate"][:, 0] = -0.5
    kept = np.arange(37) % 5 != 3
    target = np.flatnonzero(kept)[target % kept.sum()]

    def among(kept, array, fill):
        whole = np.full((*array.shape[:-1], 37), fill, array.dtype)
        whole[..., kept] = array[..., kept] if array.shape[-1] == 37 else array
        return whole

    few = {name: value[:, kept] if name == "leader" else value for name, value in options.items()}
    few = solve(np.ascontiguousarray(peer_logits[..., kept]), np.searchsorted(np.flatnonzero(kept), target), few)
    if "leader" in options:
        options["leader"] = among(kept, options["leader"], -np.inf)
    ours = solve(among(kept, peer_logits, -np.inf), target, options)
    for name, value in few.items():
        if name in ("grad_peer_logits", "grad_leader"):
            value = among(kept, value, 0)
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("weights, mix", KINDS)
def test_a_class_that_a_student_lacks_is_an_infinite_loss(isa, weights, mix):
    peer_logits, target, options = problem_of_kind(weights, mix, classes=37)
    peer_logits[0, 1, 5], target[0] = -np.inf, 6
    ours = solve(peer_logits, target, options)
    assert np.isposinf(ours["loss"][0]) and np.isposinf(ours["parts"][2]) and np.isfinite(ours["parts"][[0, 1, 3]]).all()
    ours = solve(peer_logits, target, {**options, "kl_weight": 0.0})
    assert all(np.isfinite(value).all() for name, value in ours.items() if name != "parts")


def test_a_class_that_a_peer_without_weight_lacks(isa):
    """It has no part in the mixture: no gradient by its weight comes of that class, and none is NaN."""
    peer_logits, target, options = problem_of_kind("gate", "logits", classes=20)
    options["gate"][:, 0] = 0
    peer_logits[:, 0, 3] = -np.inf
    target[:] = 12
    ours = solve(peer_logits, target, {**options, "kl_weight": 0.0})
    assert all(np.isfinite(ours[name]).all() for name in ("loss", "grad_gate", "grad_peer_logits"))
    _, _, options = problem_of_kind("attention", "logits", classes=20)
    features = {name: options[name] for name in ("query", "key")}
    ours = mix(peer_logits, {**features, "grad_mixture": np.ones_like(peer_logits)})
    assert np.isfinite(ours["grad_query"]).all() and np.isfinite(ours["grad_key"]).all()


@pytest.mark.parametrize("weights, mix", [("attention", "logits"), ("attention", "probs")])
def test_nothing_comes_of_divergences_without_weight(isa, weights, mix):
    peer_logits, target, options = problem_of_kind(weights, mix)
    without = solve(peer_logits, target, {**options, "kl_weight": 0.0})
    options["query"][:] = np.nan
    ours = solve(peer_logits, target, {**options, "kl_weight": 0.0})
    assert np.isnan(ours.pop("parts")[2:]).any() and without.pop("parts")[2:].all()
    assert_equal(ours, without)
    assert not ours["grad_query"].any() and not ours["grad_key"].any()


def test_detached_targets_teach_the_student_alone(isa):
    peer_logits, target, options = plain_problem()
    ours, attached = (solve(peer_logits, target, {**options, "detach_targets": detach}) for detach in (True, False))
    assert not ours["grad_query"].any() and not ours["grad_key"].any()
    np.testing.assert_array_equal(ours["grad_leader"], attached["grad_leader"])
    np.testing.assert_array_equal(ours["parts"], attached["parts"])
    assert np.abs(ours["grad_peer_logits"] - attached["grad_peer_logits"]).max() > 1e-3


def test_one_peer_without_others(isa):
    for mix in MIXES:
        peer_logits, target, options = problem_of_kind("others", mix, peers=1)
        ours = solve(peer_logits, target, options)
        assert ours["parts"][2] == 0 and ours["loss"] == ours["parts"][0]
        assert_equal(ours, solve(peer_logits, target, {**options, "kl_weight": 0.0}))


def test_what_is_asked_for():
    problem = plain_problem()
    names = {"grad_peers": {"grad_peer_logits"}, "grad_leader": {"grad_leader"}, "grad_features": {"grad_query", "grad_key"}}
    all_of_them = solve(*problem)
    for asked, expected in names.items():
        ours = solve(*problem, **{name: name == asked for name in names})
        assert ours.keys() == {"loss", "parts", *expected}
        assert_equal(ours, {name: all_of_them[name] for name in ours})


def test_nothing_to_learn_from(isa):
    problem = plain_problem(samples=0)
    ours = solve(*problem)
    assert ours["loss"] == 0 and not ours["parts"].any() and ours["grad_peer_logits"].shape == (0, 3, 100)


@pytest.mark.parametrize("bad", [100, -1, -100, 2**40])
def test_labels_that_are_none(bad):
    peer_logits, target, options = plain_problem()
    target[1] = bad
    with pytest.raises(ValueError, match=rf"target contains {bad}, valid labels are 0\.\.99"):
        solve(peer_logits, target, options)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"peer_logits": np.zeros((2, 33, 5), np.float32)}, r"peer_logits must be \[B, P, C\] with 1 to 32 peers"),
        ({"target": np.zeros(3, np.int64)}, r"target must be \[B\]"),
        ({"key": None}, "query and key go together"),
        ({"key": np.zeros((2, 3, 9), np.float32)}, r"query and key must be \[B, P, d\]"),
    ],
)
def test_bad_arguments(arguments, rule):
    peer_logits, target, options = plain_problem()
    arguments = {"peer_logits": peer_logits, "target": target, **numbered(options), **arguments}
    with pytest.raises(ValueError, match=rule):
        host.peer_ensemble_loss(**arguments)
