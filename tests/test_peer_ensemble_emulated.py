"""The CUDA kernels of peer ensembles, emulated (docs/emulation.md), against the formulas of peer_ensemble_oracle.py: problems
drawn by hypothesis in every dtype, memory layout and option, under a random order of threads and random launch plans.
"""

import emulated
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer_ensemble_oracle import (
    check,
    check_mixture,
    gradients,
    mix_emulated,
    mixture_problems,
    peer_ensemble_loss,
    plain_problem,
    problems,
    solve_emulated,
)

EXAMPLES = 40 if emulated.VARIANT == "sanitized" else 200
AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
# Classes of a tile, teams of warps, parts of a team; None: as the launcher plans it.
PLANS = st.none() | st.tuples(st.sampled_from([8, 16, 40]), st.integers(1, 5), st.integers(1, 3))
# Of 32 peers and a leader: a block has a thread per row, as in every launch that is planned (plan_peers).
PLANS_OF_MANY = PLANS.filter(lambda plan: plan is None or plan[1] * plan[2] > 1)


def plain(weights, **sizes):
    logits, target, options = plain_problem(**sizes)
    if weights != "attention":
        options = {"weights": weights, "temperature": options["temperature"], "target_eps": options["target_eps"]}
    if weights == "gate":
        gate = np.random.default_rng(1).random(logits.shape[:2], np.float32)
        options["gate"] = gate / gate.sum(1, keepdims=True)
    return logits, target, options


@settings(max_examples=EXAMPLES, **AT_LEISURE)
@given(problems(peers=st.integers(1, 4)), gradients, PLANS, st.integers(0, 2**32))
def test_matches_the_formulas(problem, wanted, plan, seed):
    check(*problem, solve_emulated(*problem, seed, plan=plan, **wanted))


@settings(max_examples=EXAMPLES // 2, **AT_LEISURE)
@given(mixture_problems(peers=st.integers(1, 4)), PLANS, st.integers(0, 2**32))
def test_mixture_matches_the_formulas(problem, plan, seed):
    check_mixture(*problem, mix_emulated(*problem, seed, plan=plan))


@pytest.mark.long
@settings(max_examples=5 * EXAMPLES, **AT_LEISURE)
@given(problems(), gradients, PLANS_OF_MANY, st.integers(0, 2**32))
def test_matches_the_formulas_at_length(problem, wanted, plan, seed):
    check(*problem, solve_emulated(*problem, seed, plan=plan, **wanted))


@pytest.mark.long
@settings(max_examples=5 * EXAMPLES, **AT_LEISURE)
@given(mixture_problems(), PLANS, st.integers(0, 2**32))
def test_mixture_matches_the_formulas_at_length(problem, plan, seed):
    check_mixture(*problem, mix_emulated(*problem, seed, plan=plan))


KINDS = [("attention", "logits"), ("attention", "probs"), ("gate", "logits")]
KINDS += [("others", mix) for mix in ("logits", "probs", "divergences")]


@pytest.mark.parametrize("plan", [None, (16, 2, 2)])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("weights", "mix"), KINDS)
def test_every_kind(weights, mix, detach, plan):
    logits, target, options = plain(weights, classes=50)
    options |= {"mix": mix, "detach_targets": detach, "kl_weight": 0.7}
    check(logits, target, options, solve_emulated(logits, target, options, plan=plan))


@pytest.mark.parametrize("plan", [None, (16, 2, 2)])
@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("mix", ["logits", "probs"])
def test_every_mixture(mix, attends, plan):
    logits, _, features = plain("attention", classes=50)
    rng = np.random.default_rng(1)
    options = {"mix": mix, "temperature": 3.0}
    options["grad_mixture"] = rng.normal(size=logits.shape if attends else (2, 1, 50)).astype(np.float32)
    if attends:
        options |= {name: features[name] for name in ("query", "key")}
        options["grad_attention"] = rng.normal(size=(2, 3, 3)).astype(np.float32)
    check_mixture(logits, options, mix_emulated(logits, options, plan=plan))


def test_a_term_of_weight_0_adds_nothing():
    """Not even infinity."""
    logits, target, options = plain("others", classes=20)
    logits[:, 0, 3] = -np.inf
    target[:] = 12
    ours = solve_emulated(logits, target, {**options, "kl_weight": 0.0})
    assert np.isinf(ours["parts"][2]) and ours["loss"] == ours["parts"][0]
    assert np.isfinite(ours["grad_peer_logits"]).all()


@pytest.mark.parametrize("weights", ["attention", "gate", "others"])
@pytest.mark.parametrize(("peers", "classes"), [(32, 40), (3, 5000)])
def test_many_peers_and_many_classes(weights, peers, classes):
    """More rows than teams; more classes than a block holds."""
    problem = plain(weights, samples=1, peers=peers, classes=classes)
    check(*problem, solve_emulated(*problem))


@pytest.mark.parametrize("plan", [None, (16, 3, 2)])
def test_every_order_of_threads_gives_the_same_bits(plan):
    problem = plain("attention", classes=100)
    results = [solve_emulated(*problem, seed, plan=plan) for seed in range(6)]
    for result in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)


@pytest.mark.parametrize("bad", [-100, -1, 17])
def test_a_label_that_is_none_makes_its_sample_nan(bad):
    """A GPU cannot raise."""
    logits, target, options = plain("attention", samples=3, classes=17)
    target[1] = bad
    ours = solve_emulated(logits, target, options)
    assert np.isnan(ours["loss"]) and np.isnan(ours["parts"][:2]).all() and np.isfinite(ours["parts"][2:]).all()
    assert np.isnan(ours["grad_peer_logits"][1]).all() and np.isfinite(ours["grad_peer_logits"][[0, 2]]).all()


def test_two_launches_forward_and_one_backward():
    launches = emulated.module().launch_count
    before = launches()
    for weights in ("attention", "gate", "others"):
        solve_emulated(*plain(weights))
    assert launches() - before == 3 * 2
    arrays = [np.ones(5, np.float32), np.ones((2, 3)), np.ones(7, np.float16)]
    emulated.module().scale_gradients(arrays, 1.0)
    assert all((array == 1).all() for array in arrays)
    emulated.module().scale_gradients(arrays, 2.5)
    assert all((array == 2.5).all() for array in arrays)
    assert launches() - before == 3 * 2 + 2
    logits, _, options = plain("attention")
    features = {name: options[name] for name in ("query", "key")}
    mix_emulated(logits, {**features, "grad_mixture": logits})
    assert launches() - before == 3 * 2 + 2 + 2


def test_logits_of_ten_thousand_keep_their_digits():
    """A common offset is not seen: neither by a softmax nor by a mixture of logits."""
    logits, target, options = plain("attention", classes=64)
    logits = np.round(logits * 256) / 256
    moved = solve_emulated(np.float32(8192) + logits, target, options)
    truth = peer_ensemble_loss(logits, target, **options)
    np.testing.assert_allclose(moved["parts"], truth["parts"].value, rtol=1e-5)


@pytest.mark.parametrize("plan", [None, (8, 3, 2)])
@pytest.mark.parametrize("weights", ["attention", "gate", "others"])
def test_classes_that_a_peer_rules_out(weights, plan):
    """Probability 0 for the peer, and for every mixture it has a part in; the gradients stay numbers."""
    logits, target, options = plain(weights, classes=20)
    options["target_eps"] = 0.0
    if weights == "gate":
        options["gate"][:, 1] = -0.5
    logits[:, :, 5] = -np.inf
    logits[0, :, :9] = -np.inf  # all of a tile
    target[:] = 12
    if "leader" in options:
        options["leader"][:, 5] = -np.inf
        options["leader"][0, :9] = -np.inf
    ours = solve_emulated(logits, target, options, plan=plan)
    assert all(np.isfinite(numbers).all() for numbers in ours.values())
    check(logits, target, options, ours)
    if weights == "gate":
        options["gate"][:, 0] = 0  # no part: its target knows a class that it rules out itself
        logits[:, 0, 3] = -np.inf
        ours = solve_emulated(logits, target, options, plan=plan)
        assert ours["loss"] == np.inf and np.isfinite(ours["parts"][:2]).all()
        ours = solve_emulated(logits, target, {**options, "kl_weight": 0.0}, plan=plan)
        assert np.isfinite(ours["grad_gate"]).all() and np.isfinite(ours["grad_peer_logits"]).all()


@pytest.mark.long
@pytest.mark.skipif(emulated.VARIANT == "sanitized", reason="starts the process it would run in")
def test_sanitized():
    process = emulated.run_sanitized(["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", __file__])
    assert process.returncode == 0, process.stdout + process.stderr
