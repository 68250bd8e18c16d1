"""kdkernels._host.similarity and similarity_rank with every instruction set, against the float64 formulas of
similarity_oracle.py. No torch tensor is made.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from host_isa import host, isa  # noqa: F401  a fixture
from row_problems import FLOATS, encode
from similarity_problems import check, check_ranks, gradients, numbered, rank_problems, similarity_problems

AT_LEISURE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
# Roundings of the oracle's scale. The largest error seen in 15,000 problems is 1.4.
FACTOR = 2


def solve(query, key, options, **more):
    # Derivatives by the temperature are those of losses without a teacher or a factor T^2.
    if options["target"] == "teacher" or options.get("scale_by_t2"):
        more["grad_temperature"] = False
    return host.similarity(query, key, **numbered(options), **more)


def plain_features(queries, keys, width, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(rows, width)) * spread).astype(np.float32) for rows in (queries, keys)]


@settings(max_examples=200, **AT_LEISURE)
@given(similarity_problems(), gradients)
def test_matches_the_formulas(isa, problem, gradients):
    check(*problem, solve(*problem, **gradients), factor=FACTOR)


@pytest.mark.long
@settings(max_examples=5000, **AT_LEISURE)
@given(similarity_problems(), gradients)
def test_matches_the_formulas_at_length(isa, problem, gradients):
    check(*problem, solve(*problem, **gradients), factor=FACTOR)


@settings(max_examples=150, **AT_LEISURE)
@given(rank_problems())
def test_ranks(isa, problem):
    query, key, positive, normalize, exact = problem
    check_ranks(*problem, host.similarity_rank(query, key, positive, normalize))


# More keys than what is under way together may have: its bands are solved in two rounds.
@pytest.mark.parametrize("target", ["symmetric", "teacher", "labels"])
def test_more_than_one_round_of_bands(isa, target):
    query, key = plain_features(200, 17000, 3)
    symmetric = target == "symmetric"
    options = {"target": "positive" if symmetric else target, "symmetric": symmetric, "temperature": 0.5}
    if target == "teacher":
        options["teacher_query"], options["teacher_key"] = plain_features(200, 17000, 2, seed=1)
    if target == "labels":
        options["query_labels"], options["key_labels"] = np.arange(200) % 7, np.arange(17000) % 9
    check(query, key, options, solve(query, key, options, grad_temperature=True), factor=FACTOR)


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_student_and_teacher_have_no_loss_and_no_gradient(isa, dtype):
    query, key = (encode(x, dtype) for x in plain_features(100, 70, 65))
    options = {"target": "teacher", "teacher_query": query.copy(), "teacher_key": key.copy(), "temperature": 0.07}
    ours = solve(query, key, options)
    assert ours["loss"] == 0 and not ours["grad_query"].any() and not ours["grad_key"].any()


def test_equal_rows_have_equal_results(isa):
    """To the bit, wherever they lie: in other lanes, tiles, blocks and bands."""
    query, key = plain_features(1, 1, 300)
    query, key = np.repeat(query, 150, 0), np.repeat(key, 200, 0)
    positive = np.arange(150)
    np.testing.assert_array_equal(host.similarity_rank(query, key, positive), positive)
    ours = host.similarity(query, key, positive=positive, reduction=0)
    assert len(np.unique(ours["loss"])) == 1


def test_the_order_of_keys_is_no_part_of_a_similarity(isa):
    query, key = plain_features(90, 200, 130)
    order = np.random.default_rng(1).permutation(200)
    positive = np.arange(90)
    moved = host.similarity_rank(query, key[order], np.argsort(order)[positive])
    np.testing.assert_array_equal(moved, host.similarity_rank(query, key, positive))


def test_masked_queries_might_as_well_not_be_there(isa):
    query, key = plain_features(130, 140, 33)
    mask = np.random.default_rng(2).random(130) < 0.5
    positive = np.arange(130)
    key_of_masked = query.copy()
    key_of_masked[~mask] = np.inf
    for symmetric in (False, True):
        ours = host.similarity(key_of_masked, key, positive=np.where(mask, positive, -9), mask=mask, symmetric=symmetric)
        left = host.similarity(query[mask], key, positive=positive[mask], symmetric=symmetric)
        np.testing.assert_allclose(ours["loss"], left["loss"], rtol=1e-6)
        np.testing.assert_allclose(ours["grad_query"][mask], left["grad_query"], atol=1e-7)
        np.testing.assert_allclose(ours["grad_key"], left["grad_key"], atol=1e-7)
        assert not ours["grad_query"][~mask].any()


@pytest.mark.parametrize("target", ["positive", "symmetric", "labels", "teacher"])
def test_bands_without_a_query_that_counts_are_skipped(isa, target):
    query, key = plain_features(1000, 40, 20)
    options = {"target": "positive" if target == "symmetric" else target, "positive": np.arange(1000) % 40}
    options.update(query_labels=np.arange(1000) % 5, key_labels=np.arange(40) % 5, symmetric=target == "symmetric")
    if target == "teacher":
        options.update(zip(("teacher_query", "teacher_key"), plain_features(1000, 40, 7, seed=1)))
    mask = np.zeros(1000, bool)
    for counted, bands in (([], 0), ([0], 1), ([63, 64], 2), ([70, 100, 999], 2)):
        mask[:] = False
        mask[counted] = True
        ours = solve(query, key, options, mask=mask)
        assert ours["bands"] == bands
        check(query, key, {**options, "mask": mask}, ours, factor=FACTOR)
    # Anchors without a positive do not count either.
    assert host.similarity(query, key, target=1, query_labels=np.arange(1000) // 64, key_labels=np.full(40, 3))["bands"] == 1
    # Keys that nobody is compared with may hold anything.
    ours = solve(query, np.full_like(key, np.nan), options, mask=np.zeros(1000, bool))
    assert ours["loss"] == 0 and not ours["grad_query"].any() and not ours["grad_key"].any()


def test_a_positive_that_every_query_removes(isa):
    """The softmax over its column is 0 / 0: the other query's loss is finite, its gradient is whatever."""
    query, key = plain_features(2, 2, 1)
    options = {"positive": np.array([1, 0]), "symmetric": True, "reduction": "none"}
    options["bias"] = np.array([[0, -np.inf], [0, -np.inf]], np.float32)
    ours = solve(query, key, {**options, "target": "positive"})
    np.testing.assert_array_equal(np.isfinite(ours["loss"]), [False, True])
    check(query, key, options, ours, factor=FACTOR)
    # Without that query in it, the column has no weight.
    options["mask"] = np.array([False, True])
    check(query, key, options, solve(query, key, {**options, "target": "positive"}), factor=FACTOR)


@pytest.mark.parametrize("target", ["positive", "labels", "teacher"])
def test_a_query_without_keys_spoils_its_own_loss_alone(isa, target):
    query, key = plain_features(70, 40, 20)
    options = {"target": target, "positive": np.arange(70) % 40, "temperature": 0.5}
    options.update(query_labels=np.arange(70) % 5, key_labels=np.arange(40) % 5)
    options.update(teacher_query=query[::-1], teacher_key=key[::-1])
    bias = np.zeros((70, 40), np.float32)
    bias[66] = -np.inf
    ours = solve(query, key, {**options, "reduction": "none", "bias": bias})
    np.testing.assert_array_equal(np.isfinite(ours["loss"]), np.arange(70) != 66)
    left = solve(query, key, {**options, "reduction": "none", "mask": np.arange(70) != 66})
    for name in ("grad_query", "grad_key"):
        np.testing.assert_allclose(ours[name], left[name], atol=1e-6)


@pytest.mark.parametrize(
    "dtype, spread", [("float16", 1e4), ("bfloat16", 1e17), ("float32", 1e17), ("float32", 1e-17), ("float64", 1e100)]
)
def test_rows_of_any_length(isa, dtype, spread):
    """Long rows of large numbers, whose squares no float16 holds; and rows so short that they are as good as zero."""
    query, key = (x.astype(np.float64) * spread for x in plain_features(20, 30, 4096))
    query, key = (encode(x, dtype) for x in (query, key))
    options = {"target": "positive", "temperature": 0.5}
    check(query, key, options, solve(query, key, options), factor=FACTOR)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_far_from_zero(isa, sign):
    """Softmaxes are taken from their largest logit, in which queries that are masked or none have no part."""
    query, key = np.full((5, 1), 30, np.float32), np.full((7, 1), sign * 30, np.float32)
    mask = np.arange(5) > 0
    ours = host.similarity(query, key, normalize=False, symmetric=True, mask=mask)
    np.testing.assert_allclose(ours["loss"], (np.log(7) + np.log(4)) / 2, rtol=1e-6)


def test_nothing_to_compare(isa):
    query, key = plain_features(0, 5, 8)
    ours = host.similarity(query, key, grad_temperature=True)
    assert ours["loss"] == 0 and not ours["grad_key"].any() and ours["grad_query"].shape == (0, 8)
    assert ours["grad_temperature"] == 0
    assert host.similarity_rank(query, key, np.zeros(0, np.int64)).shape == (0,)
    options = {"query_labels": np.zeros(5, int), "key_labels": np.zeros(0, int), "target": 1}
    ours = host.similarity(key, query, **options)
    assert ours["loss"] == 0 and not ours["grad_query"].any()
    ours = host.similarity(key, key, mask=np.zeros(5, bool))
    assert ours["loss"] == 0 and not ours["grad_query"].any() and not ours["grad_key"].any()


def test_temperature_in_an_array():
    query, key = plain_features(20, 30, 16)
    for name, value in host.similarity(query, key, temperature=0.3, grad_temperature=True).items():
        at = host.similarity(query, key, temperature_at=np.float32(0.3), grad_temperature=True)
        np.testing.assert_array_equal(value, at[name])


@pytest.mark.parametrize("positive, bad", [([0, 70, 2], "70"), ([0, 1, -1], "-1")])
def test_positives_that_are_none(positive, bad):
    query, key = plain_features(3, 64, 4)
    for solve in (host.similarity, host.similarity_rank):
        with pytest.raises(ValueError, match=rf"positive contains {bad}, valid keys are 0\.\.63"):
            solve(query, key, positive=np.array(positive))


@pytest.mark.parametrize(
    "arguments, error, rule",
    [
        ({"key": np.zeros((4, 6), np.float32)}, ValueError, "query and key must have equal widths"),
        ({"key": np.zeros((4, 5), np.int64)}, TypeError, "key must be float32, .* got int64"),
        ({"query": np.zeros(5, np.float32)}, ValueError, r"query must be \[rows, width\] with a width of at least 1"),
        ({"mask": np.ones(2, bool)}, ValueError, "mask must have one value per query"),
        ({"target": 1}, ValueError, "target labels needs query_labels and key_labels"),
        ({"target": 1, "query_labels": [1] * 3, "key_labels": [1]}, ValueError, "key_labels must have one value per key"),
        ({"target": 1, "symmetric": True}, ValueError, "only target positive can be symmetric"),
        ({"target": 2}, ValueError, "target teacher needs teacher_query and teacher_key"),
    ],
)
def test_bad_arguments(arguments, error, rule):
    arguments = {"query": np.zeros((3, 5), np.float32), "key": np.zeros((4, 5), np.float32), **arguments}
    with pytest.raises(error, match=rule):
        host.similarity(**arguments)
