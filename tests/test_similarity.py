"""The compiled op against its reference twin: sizes, layouts, dtypes, options, corners (similarity_losses.check)."""

import itertools
import math

import pytest
import torch
from helpers import FLOATS, assert_accurate, assert_same_formula, draw, labels, threads
from similarity_losses import check, pairs, run

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
# Degenerate, one key, less than a vector, SSKD's batch of 64, odd, more keys than a tile, more queries than a band.
SIZES = [(0, 3, 4), (1, 1, 1), (2, 1, 3), (3, 5, 7), (192, 64, 128), (65, 131, 33), (5, 1000, 100), (700, 9, 17)]


def kl(student_query, student_key, **options):
    """With a teacher drawn for these rows, narrower than the student, the same numbers in every dtype."""
    teacher = pairs(len(student_query), len(student_key), 5, device=student_query.device, seed=50)
    teacher = [rows.mul(16).round().div(16).to(student_query.dtype) for rows in teacher]
    return kd.similarity_kl(student_query, student_key, *teacher, **options)


def nce(query, key, **options):
    positive = labels(len(query), classes=len(key), seed=7, device=query.device)
    return kd.info_nce(query, key, positive, **options)


def both_ways(query, key, **options):
    return nce(query, key, symmetric=True, **options)


def supervised(features, **options):
    y = labels(len(features), classes=max(len(features) // 3, 1), seed=3, device=features.device)
    return kd.supervised_contrastive(features, y, **options)


def learned_temperature(query, key, temperature, **options):
    return nce(query, key, temperature=temperature, **options)


PAIRS = {"similarity_kl": kl, "info_nce": nce, "symmetric": both_ways}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(machine, size):
    query, key = pairs(*size, device=machine)
    for name, function in PAIRS.items():
        loss, *_ = check(function, query, key, temperature=0.5)
        assert size[0] or loss == 0, name
        check(function, query, key, temperature=0.5, normalize=False, reduction="none")
    check(supervised, query, temperature=0.5)
    check(learned_temperature, query, key, torch.tensor(0.3, device=machine))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(machine, dtype):
    query, key = pairs(33, 65, 40, dtype=dtype, device=machine)
    for function in PAIRS.values():
        loss, *gradients = check(function, query, key, temperature=0.2)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert all(gradient.dtype == dtype for gradient in gradients)
    check(supervised, query, temperature=0.2)
    for of_temperature in FLOATS:
        temperature = torch.tensor(0.25, dtype=of_temperature, device=machine)
        *_, gradient = run(machine, learned_temperature, query, key, temperature)
        assert gradient.dtype == of_temperature and gradient.shape == ()


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_features_of_unlike_dtypes(device, dtypes):
    """Student and teacher, queries and keys, queries of both and keys of both."""
    positive = labels(9, classes=12, device=device)
    for at in ((0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 1), (1, 1, 1, 0)):
        tensors = (*pairs(9, 12, 8, device=device), *pairs(9, 12, 20, device=device, seed=4))
        query, key, *teacher = given = [tensor.to(dtypes[which]) for tensor, which in zip(tensors, at)]
        exact = [tensor.double() for tensor in given]
        divergence = run(device, lambda q, k: kd.similarity_kl(q, k, *teacher), query, key)
        assert_accurate(
            divergence, lambda: run("reference", lambda q, k: kd.similarity_kl(q, k, *exact[2:]), *exact[:2])
        )
        contrast = run(device, both_ways, query, key)
        assert_accurate(contrast, lambda: run("reference", both_ways, *exact[:2]))
        for (loss, *gradients), features in ((divergence, given), (contrast, given[:2])):
            is_double = any(tensor.dtype is torch.float64 for tensor in features)
            assert loss.dtype is (torch.float64 if is_double else torch.float32)
            assert [gradient.dtype for gradient in gradients] == [query.dtype, key.dtype]
        assert torch.equal(kd.similarity_rank(query, key, positive), kd.similarity_rank(*exact[:2], positive))


def test_features_of_unlike_dtypes_under_autocast(device):
    """A projection is half precision there, and what an average of parameters gave is not."""
    query, key = pairs(9, 12, 8, device=device)
    weight = draw(8, 8, device=device).requires_grad_()
    with kd.backend(device), torch.autocast(device, torch.bfloat16):
        projected = query @ weight
        kd.info_nce(projected, key).backward()
        assert projected.dtype is torch.bfloat16 and key.dtype is torch.float32
    assert weight.grad.isfinite().all() and weight.grad.any()


def layouts(device):
    """[12, 10] views, of which the features are neighbours or not."""
    return {
        "plain": draw(12, 10, scale=1.0, device=device),
        "transposed": draw(10, 12, scale=1.0, device=device).T,
        "every other row": draw(24, 10, scale=1.0, device=device)[::2],
        "part of a wider one": draw(12, 33, scale=1.0, device=device)[:, 7:17],
        "every other feature": draw(12, 20, scale=1.0, device=device)[:, ::2],
        "one row for all": draw(1, 10, scale=1.0, device=device).expand(12, -1),
        "offset by one element": draw(121, scale=1.0, device=device)[1:].view(12, 10),
    }


@pytest.mark.parametrize("layout", layouts("cpu"))
def test_layouts(machine, layout):
    rows = layouts(machine)[layout]
    for query, key in ((rows, draw(9, 10, seed=1, device=machine)), (draw(9, 10, seed=1, device=machine), rows)):
        check(kl, query, key, temperature=0.5)
        check(both_ways, query, key, temperature=0.5)
        positive = labels(len(query), classes=len(key), device=machine)
        expected = kd.similarity_rank(query.contiguous(), key.contiguous(), positive)
        assert torch.equal(kd.similarity_rank(query, key, positive), expected)
    check(supervised, rows, temperature=0.5)
    teacher = layouts(machine)[layout], draw(9, 10, seed=1, device=machine)
    student = pairs(12, 9, 4, device=machine)
    check(lambda q, k, **o: kd.similarity_kl(q, k, *(t.to(q.dtype) for t in teacher), **o), *student, temperature=0.5)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
def test_reductions_masks_and_weights(machine, reduction):
    query, key = pairs(21, 13, 6, device=machine)
    mask = labels(21, classes=3, seed=1, device=machine) > 0
    weight = draw(21, seed=2, device=machine).abs()
    for options in ({}, {"mask": mask}, {"row_weight": weight}, {"mask": mask, "row_weight": weight}):
        check(kl, query, key, temperature=0.5, reduction=reduction, **options)
    for scale_by_t2 in (True, False):
        check(kl, query, key, temperature=2.0, scale_by_t2=scale_by_t2, reduction=reduction)
    for function in (nce, both_ways):
        for masked in (None, mask):
            check(function, query, key, temperature=0.5, reduction=reduction, mask=masked)
    check(learned_temperature, query, key, torch.tensor(0.5, device=machine), reduction=reduction, mask=mask)
    for masked in (None, mask):
        check(supervised, query, temperature=0.5, reduction=reduction, mask=masked)


@pytest.mark.parametrize("shape", [(), (13,), (1, 13), (21, 1), (21, 13)], ids=str)
def test_logit_bias(machine, shape):
    query, key = pairs(21, 13, 6, device=machine)
    bias = draw(*shape, seed=5, device=machine)
    if shape and shape[-1] == 13:
        bias[..., 4] = -inf
        bias[..., 2] = -50.0
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for symmetric in (False, True):
            positive = labels(21, classes=4, device=machine)  # none of them removed
            check(
                lambda q, k, **o: kd.info_nce(q, k, positive, **o),
                query,
                key,
                symmetric=symmetric,
                temperature=0.5,
                logit_bias=bias.to(dtype),
            )
    if len(shape) == 2:
        spread_out = bias.T.contiguous().T
        check(lambda q, k, **o: kd.info_nce(q, k, positive, **o), query, key, temperature=0.5, logit_bias=spread_out)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_diagonal_is_the_default(machine, symmetric):
    query, key = pairs(15, 15, 6, device=machine)
    ours = run(machine, kd.info_nce, query, key, symmetric=symmetric)
    numbers = torch.arange(15, device=machine)
    expected = run(machine, lambda q, k: kd.info_nce(q, k, numbers, symmetric=symmetric), query, key)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))
    check(kd.info_nce, query, key, symmetric=symmetric, temperature=0.5)


def test_queries_and_keys_of_one_tensor(machine):
    """SSKD: rows 4 i are upright images, the others their rotations; one tensor gets both gradients."""
    features, teacher = draw(48, 20, device=machine), draw(48, 30, seed=1, device=machine)
    upright = torch.arange(48, device=machine) % 4 == 0

    def loss(features, **options):
        t = teacher.to(features.dtype)
        return kd.similarity_kl(features[~upright], features[upright], t[~upright], t[upright], **options)

    check(loss, features, temperature=0.5)
    check(lambda f, **o: nce(f, f, **o), features, temperature=0.5)
    teacher.requires_grad_()  # is a constant
    with kd.backend(machine):
        kd.similarity_kl(*[features.clone().requires_grad_()] * 2, teacher, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
def test_row_weights_that_are_learned(device, reduction):
    student, teacher = (pairs(8, 10, width, dtype=torch.float64, device=device, seed=width) for width in (5, 4))
    weight = draw(8, seed=2, dtype=torch.float64, device=device)

    def loss(query, key, weight):
        mask = torch.arange(8, device=device) != 3
        return kd.similarity_kl(query, key, *teacher, row_weight=weight, mask=mask, reduction=reduction)

    upstream = draw(8, seed=9, device=device) if reduction == "none" else torch.tensor(2.0, device=device)
    ours = run(device, loss, *student, weight, upstream=upstream)
    assert_same_formula(ours, run("reference", loss, *student, weight, upstream=upstream))


# Corners


def test_rows_of_no_length(machine):
    query, key = pairs(20, 30, 8, dtype=torch.float64, device=machine)
    query[3], query[4], key[5], key[6] = 0, 1e-9, 0, 1e-12
    for function in PAIRS.values():
        for reduction in ("none", "batchmean"):
            ours = run(machine, function, query, key, temperature=0.5, reduction=reduction)
            expected = run("reference", function, query, key, temperature=0.5, reduction=reduction)
            assert all(tensor.isfinite().all() for tensor in ours)
            long = torch.ones(30, dtype=torch.bool, device=machine)
            long[[3, 4, 5, 6]] = False
            for a, b, rows in zip(ours[1:], expected[1:], (20, 30)):
                assert_same_formula(a[long[:rows]], b[long[:rows]])
                assert_same_formula(1e-8 * a, 1e-8 * b)  # which divides the short ones
            assert_same_formula(ours[0], expected[0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_of_no_length_learn_nothing_in_half_precision(machine, dtype):
    half = dtype in (torch.float16, torch.bfloat16)
    query, key = pairs(20, 30, 8, dtype=dtype, device=machine)
    query[3], key[5] = 0, 0
    if dtype is not torch.float16:  # which ends at 6e-8
        query[4], key[6] = 1e-12, -1e-10
    long, longer = torch.arange(20, device=machine), torch.arange(30, device=machine)
    long, longer = (long != 3) & (long != 4), (longer != 5) & (longer != 6)
    features = torch.cat([query, key])
    for backend in (machine, "reference"):
        for function in PAIRS.values():
            for reduction in ("none", "batchmean"):
                loss, by_query, by_key = run(backend, function, query, key, temperature=0.5, reduction=reduction)
                assert loss.isfinite().all() and by_query.isfinite().all() and by_key.isfinite().all()
                short = [by_query[3:5], by_key[5:7]] if dtype is not torch.float16 else [by_query[3], by_key[5]]
                assert not any(x.any() for x in short) if half else all(x.any() for x in short)
                assert by_query[long].any() and by_key[longer].any()
        _, by_features = run(backend, supervised, features, temperature=0.5)
        assert by_features.isfinite().all() and bool(by_features[3].any()) is not half


def test_large_features_and_small_temperatures(machine):
    query, key = pairs(20, 30, 8, device=machine, scale=1e4)
    for function in PAIRS.values():
        check(function, query, key, temperature=0.01)
        check(function, query / 100, key / 100, temperature=100.0, normalize=False)
    check(supervised, query, temperature=0.01)


def test_equal_features(machine):
    """No key differs from another: the divergence is 0, a cross entropy the logarithm of the number of keys."""
    row = draw(1, 8, dtype=torch.float64, device=machine)
    query, key = row.expand(6, -1).contiguous(), row.expand(9, -1).contiguous()
    loss, *gradients = run(machine, lambda q, k: kd.similarity_kl(q, k, query, key), query, key)
    assert loss.abs() < 1e-12 and all(g.abs().max() < 1e-12 for g in gradients)
    loss, *_ = run(machine, nce, query, key)
    assert_same_formula(loss.cpu(), torch.tensor(math.log(9), dtype=torch.float64))
    loss, *_ = run(machine, lambda f: kd.supervised_contrastive(f, torch.zeros(6, dtype=torch.int64, device=machine)), query)
    assert_same_formula(loss.cpu(), torch.tensor(math.log(5), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_bands_of_masked_queries(machine, dtype):
    """Some of the tiles of queries have one that counts, most have none and are skipped."""
    query, key = pairs(700, 50, 20, dtype=dtype, device=machine)
    mask = torch.zeros(700, dtype=torch.bool, device=machine)
    mask[[130, 131, 500]] = True
    query[~mask] = nan
    for function in PAIRS.values():
        for reduction in ("none", "batchmean"):
            options = dict(temperature=0.5, reduction=reduction)
            ours = check(function, query, key, mask=mask, **options)
            assert not ours[1][~mask].any()


def test_masked_queries_may_hold_anything(machine):
    query, key = pairs(20, 30, 8, device=machine)
    mask = labels(20, classes=2, device=machine) > 0
    spoilt = query.clone()
    spoilt[~mask] = nan
    for function in PAIRS.values():
        expected = run(machine, function, query, key, temperature=0.5, mask=mask)
        ours = run(machine, function, spoilt, key, temperature=0.5, mask=mask)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected))
        assert not ours[1][~mask].any()


def test_keys_that_no_query_is_compared_with_may_hold_anything(machine):
    query, key = pairs(20, 30, 8, device=machine)
    key[3] = nan
    for function, features in (*[(function, (query, key)) for function in PAIRS.values()], (supervised, (key,))):
        mask = torch.zeros(len(features[0]), dtype=torch.bool, device=machine)
        for backend in (machine, "reference"):
            assert not any(x.any() for x in run(backend, function, *features, mask=mask))


def test_masked_queries_may_be_without_a_positive(machine):
    query, key = pairs(20, 30, 8, device=machine)
    positive, mask = labels(20, classes=30, device=machine), labels(20, classes=2, device=machine) > 0
    for backend in (machine, "reference"):
        for symmetric in (False, True):
            expected, ours = (
                run(backend, kd.info_nce, query, key, positive=place, mask=mask, symmetric=symmetric)
                for place in (positive, positive.masked_fill(~mask, -1))
            )
            assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def test_a_query_of_nan_ranks_first(machine):
    query, key = pairs(20, 30, 8, device=machine)
    query[7, 2] = nan
    positive = torch.full((20,), 4, device=machine)
    ranks = kd.similarity_rank(query, key, positive)
    assert ranks[7] == 0 and torch.equal(ranks, kd.reference.similarity_rank(query, key, positive))


@pytest.mark.parametrize("bad", [nan, inf])
def test_numbers_that_are_none_stay_with_their_query(machine, bad):
    query, key = pairs(20, 30, 8, device=machine)
    query[7, 2] = bad
    for function in (kl, nce):
        loss, by_query, _ = run(machine, function, query, key, reduction="none")
        others = torch.arange(20, device=machine) != 7
        assert loss[7].isnan() and loss[others].isfinite().all()
        assert by_query[7].isnan().all() and by_query[others].isfinite().all()


def test_a_removed_positive_is_infinite(machine):
    query, key = pairs(4, 6, 8, device=machine)
    bias = torch.zeros(4, 6, device=machine)
    bias[2, 2] = -inf
    for backend in (machine, "reference"):
        with kd.backend(backend):
            loss = kd.info_nce(query, key, logit_bias=bias, reduction="none")
        assert loss.isposinf().tolist() == [False, False, True, False] and not loss.isnan().any()


def test_nothing_that_counts(machine):
    none = torch.zeros(5, dtype=torch.bool, device=machine)
    query, key = pairs(5, 6, 3, device=machine)
    for function in PAIRS.values():
        found = run(machine, function, query, key, mask=none)
        assert not any(tensor.any() for tensor in found)
    lonely = torch.arange(5, device=machine)
    for function in (
        lambda f: supervised(f, mask=none),
        lambda f: kd.supervised_contrastive(f, lonely),
        lambda f: kd.info_nce(f[:1], f[1:2], symmetric=True),
        lambda f: kd.similarity_kl(f, f[:1], key[:5], key[:1]),  # a softmax over one key
        lambda f: kd.supervised_contrastive(f[:1], lonely[:1]),
        lambda f: kd.supervised_contrastive(f[:0], lonely[:0]),
    ):
        found = run(machine, function, query)
        assert not any(tensor.any() for tensor in found)


# Ranks


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ranks(machine, size):
    """Of small whole numbers, whose products are exact: every tie is one, for the kernel and for the reference."""
    queries, keys, width = size
    query = (labels(queries, width, classes=3) - 1).float().to(machine)
    key = (labels(keys, width, classes=3, seed=1) - 1).float().to(machine)
    positive = labels(queries, classes=keys, seed=2, device=machine)
    for dtype in FLOATS:
        with kd.backend(machine):
            ours = kd.similarity_rank(query.to(dtype), key.to(dtype), positive, normalize=False)
        expected = kd.reference.similarity_rank(query.double(), key.double(), positive, normalize=False)
        assert ours.dtype is torch.int64 and torch.equal(ours, expected)


def test_equal_keys_rank_as_they_come(machine):
    """Wherever in a tile they stand."""
    query, some = draw(30, 17, device=machine), draw(7, 17, seed=1, device=machine)
    key = some.repeat(40, 1)
    positive = torch.arange(30, device=machine) * 9
    ours = kd.similarity_rank(query, key, positive)
    of_some = kd.similarity_rank(query, some, positive % 7)
    assert torch.equal(ours, of_some * 40 + positive // 7)
    query = torch.zeros_like(query)  # cosine 0 with every key
    assert torch.equal(kd.similarity_rank(query, key, positive), positive)


def test_select_trusted_rows_on_its_device(device):
    rank = labels(50, classes=5, device=device)
    for ratio in (0.0, 0.33, 1.0):
        ours = kd.select_trusted_rows(rank, ratio)
        assert ours.device == rank.device
        assert torch.equal(ours.cpu(), kd.select_trusted_rows(rank.cpu(), ratio))


def test_the_same_for_any_number_of_threads(machine):
    if machine == "cuda":
        pytest.skip("threads of the CPU")
    query, key = pairs(300, 200, 40)
    positive = labels(300, classes=200)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append([*run("cpu", kl, query, key), *run("cpu", both_ways, query, key), *run("cpu", supervised, query)])
            found[-1].append(kd.similarity_rank(query, key, positive))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


@pytest.mark.parametrize("function", PAIRS.values(), ids=PAIRS)
def test_float64_is_exact_to_1e12(machine, function):
    query, key = pairs(65, 131, 33, dtype=torch.float64, device=machine)
    ours = run(machine, function, query, key, temperature=0.3)
    for a, b in zip(ours, run("reference", function, query, key, temperature=0.3)):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12 * b.abs().max().item())
