"""The twins of the similarity losses against their formulas, query by query, in NumPy."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_same_formula, draw, labels

from kdkernels import reference

pytestmark = pytest.mark.numeric

DOUBLE = torch.float64
REDUCTIONS = ("none", "sum", "batchmean", "mean", "elementmean")


def cosines(query, key, normalize=True):
    def rows(x):
        x = x.numpy().astype(np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8) if normalize else x

    return rows(query) @ rows(key).T


def log_softmax(logits):
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def reduced(losses, counted, reduction, keys):
    losses = np.where(counted, losses, 0)
    if reduction == "none":
        return losses
    count = 1 if reduction == "sum" else max(np.sum(counted), 1) * (keys if reduction == "elementmean" else 1)
    return losses.sum() / count


def agrees(ours, expected):
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-13)


# similarity_kl


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalize", [True, False])
def test_similarity_kl(normalize, reduction):
    student = [draw(n, 5, seed=n, scale=1.0, dtype=DOUBLE) for n in (7, 4)]
    teacher = [draw(n, 3, seed=n + 10, scale=1.0, dtype=DOUBLE) for n in (7, 4)]
    mask, weight = labels(7, classes=3) > 0, draw(7, seed=3, dtype=DOUBLE).abs()
    s, t = cosines(*student, normalize), cosines(*teacher, normalize)
    for T, scaled in ((0.5, True), (2.0, False)):
        losses = []
        for j in range(7):
            log_p, log_q = log_softmax(t[j] / T), log_softmax(s[j] / T)
            losses.append((T * T if scaled else 1) * (np.exp(log_p) * (log_p - log_q)).sum())
        ours = reference.similarity_kl(
            *student,
            *teacher,
            temperature=T,
            normalize=normalize,
            scale_by_t2=scaled,
            mask=mask,
            row_weight=weight,
            reduction=reduction,
        )
        agrees(ours, reduced(losses * weight.numpy(), mask.numpy(), reduction, 4))


def test_the_loss_of_sskd_for_four_images():
    """3 B rotated images against B upright ones, by the expressions of plain PyTorch, and by the closed form."""
    B, T = 4, 0.5
    student, teacher = (draw(4 * B, 6, seed=seed, scale=1.0, dtype=DOUBLE) for seed in (0, 1))
    upright = torch.arange(4 * B) % 4 == 0

    def cosine(features):
        return torch.cosine_similarity(features[~upright].unsqueeze(1), features[upright], dim=2)

    leaf = student.clone().requires_grad_()
    p, log_q = (cosine(teacher) / T).softmax(1), (cosine(leaf) / T).log_softmax(1)
    expected = T * T * torch.nn.functional.kl_div(log_q, p, reduction="batchmean")
    (gradient,) = torch.autograd.grad(expected, leaf)

    leaf = student.clone().requires_grad_()
    ours = reference.similarity_kl(leaf[~upright], leaf[upright], teacher[~upright], teacher[upright])
    assert_same_formula(ours, expected)
    assert_same_formula(torch.autograd.grad(ours, leaf)[0], gradient)

    f, g = student[~upright], student[upright]
    u, v = f / f.norm(dim=1, keepdim=True), g / g.norm(dim=1, keepdim=True)
    G = T / (3 * B) * ((u @ v.T / T).softmax(1) - p)
    du, dv = G @ v, G.T @ u
    assert_same_formula(
        (du - u * (u * du).sum(1, keepdim=True)) / f.norm(dim=1, keepdim=True), gradient[~upright]
    )
    assert_same_formula(
        (dv - v * (v * dv).sum(1, keepdim=True)) / g.norm(dim=1, keepdim=True), gradient[upright]
    )


# Ranks


def test_similarity_rank_is_the_place_in_a_stable_sort():
    query, key = labels(40, 3, classes=3).double() - 1, labels(9, 3, classes=3, seed=1).double() - 1  # many ties
    positive = labels(40, classes=9, seed=2)
    order = (query @ key.T).argsort(dim=1, descending=True, stable=True)
    expected = (order == positive.unsqueeze(1)).int().argmax(1)
    assert torch.equal(reference.similarity_rank(query, key, positive, normalize=False), expected)
    assert expected.unique().numel() > 4
    single = torch.zeros_like(positive)
    assert not reference.similarity_rank(query, key[:1], single).any()


@pytest.mark.parametrize("ratio", [0, 0.33, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 24, 100])
def test_select_trusted_rows(rows, ratio):
    rank = labels(rows, classes=6, seed=rows)
    wrong = [j for j in range(rows) if rank[j] > 0]
    kept = sorted(wrong, key=lambda j: rank[j].item())[: int(len(wrong) * ratio)]  # Python's sort is stable
    expected = torch.tensor([rank[j] == 0 or j in kept for j in range(rows)], dtype=torch.bool)
    assert torch.equal(reference.select_trusted_rows(rank, ratio), expected)


def test_the_number_selected_is_that_of_pythons_int():
    for wrong in range(1, 130):
        rank = torch.arange(1, wrong + 1)
        for ratio in (0.33, 0.29, 0.57, 0.58, 1 / 3, 0.75):  # 0.29 * 100 is 28.999999999999996
            assert reference.select_trusted_rows(rank, ratio).sum() == int(wrong * ratio)


# info_nce


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(6, 6, None), (5, 8, None), (5, 8, [7, 0, 7, 3, 2]), (8, 3, [0, 0, 1, 2, 1, 1, 0, 2])])
def test_info_nce(shape, symmetric, reduction):
    queries, keys, positive = shape
    query, key = (draw(n, 4, seed=n, scale=1.0, dtype=DOUBLE) for n in (queries, keys + 20))
    key = key[:keys]
    bias = draw(queries, keys, seed=4, dtype=DOUBLE)
    bias[0, 1] = -math.inf  # removed
    mask = torch.arange(queries) % 3 != 2
    s = cosines(query, key) / 0.3 + bias.numpy()
    losses, there = [], mask.numpy()
    for j in range(queries):
        k = j if positive is None else positive[j]
        loss = -log_softmax(s[j])[k]
        if symmetric and there[j]:
            column = np.where(there, s[:, k], -np.inf)
            loss = (loss - log_softmax(column)[j]) / 2
        losses.append(loss)
    ours = reference.info_nce(
        query,
        key,
        None if positive is None else torch.tensor(positive),
        temperature=0.3,
        symmetric=symmetric,
        logit_bias=bias,
        mask=mask,
        reduction=reduction,
    )
    agrees(ours, reduced(losses, there, reduction, keys))


def test_info_nce_is_the_cross_entropy_of_clip():
    image, text = draw(6, 5, dtype=DOUBLE), draw(6, 5, seed=1, dtype=DOUBLE)
    s = torch.tensor(cosines(image, text)) / 0.07
    target = torch.arange(6)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(s, target) + cross_entropy(s.T, target)) / 2
    assert_same_formula(reference.info_nce(image, text, symmetric=True), expected)
    assert_same_formula(reference.info_nce(image, text), cross_entropy(s, target))


def test_temperature_bias_and_mask_alike():
    """A key removed by its bias is a key not given, for every query; a masked query one not given."""
    query, key = draw(6, 5, dtype=DOUBLE), draw(6, 5, seed=1, dtype=DOUBLE)
    bias = torch.zeros(6).index_fill(0, torch.tensor([5]), -math.inf)
    positive = torch.tensor([0, 1, 2, 3, 4, 4])
    expected = reference.info_nce(query, key[:5], positive, symmetric=True)
    assert_same_formula(
        reference.info_nce(query, key, positive, logit_bias=bias, symmetric=True), expected
    )
    mask = torch.arange(6) < 4
    hidden = query.masked_fill(~mask.unsqueeze(1), math.nan)
    for symmetric in (False, True):
        assert_same_formula(
            reference.info_nce(hidden, key, mask=mask, symmetric=symmetric),
            reference.info_nce(query[:4], key, torch.arange(4), symmetric=symmetric),
        )


# supervised_contrastive


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_supervised_contrastive(reduction):
    features, y = draw(9, 4, scale=1.0, dtype=DOUBLE), torch.tensor([0, 1, 0, 2, 1, 0, 3, 2, -5])
    mask = torch.arange(9) != 4
    s = cosines(features, features) / 0.2
    losses, counted = np.zeros(9), np.zeros(9, bool)
    for j in range(9):
        others = [k for k in range(9) if k != j]
        same = [i for i, k in enumerate(others) if y[k] == y[j]]
        if same and mask[j]:
            counted[j], losses[j] = True, -log_softmax(s[j, others])[same].mean()
    assert counted.tolist() == [True, True, True, True, False, True, False, True, False]
    ours = reference.supervised_contrastive(features, y, temperature=0.2, mask=mask, reduction=reduction)
    agrees(ours, reduced(losses, counted, reduction, 9))


# Gradients and corners


def losses():
    bias, mask = draw(5, 6, seed=9, dtype=DOUBLE), torch.arange(5) != 1
    teacher = draw(5, 2, seed=7, dtype=DOUBLE), draw(6, 2, seed=8, dtype=DOUBLE)
    positive, y = torch.tensor([3, 0, 3, 5, 1]), torch.tensor([0, 1, 0, 1, 2])
    return {
        "similarity_kl": lambda q, k, t: reference.similarity_kl(q, k, *teacher, mask=mask, reduction="none"),
        "info_nce": lambda q, k, t: reference.info_nce(
            q, k, positive, temperature=t, logit_bias=bias, mask=mask, symmetric=True, reduction="none"
        ),
        "diagonal": lambda q, k, t: reference.info_nce(q, k, temperature=t, normalize=False),
        "supervised_contrastive": lambda q, k, t: reference.supervised_contrastive(
            q, y, temperature=0.5, mask=mask, reduction="none"
        ),
    }


@pytest.mark.parametrize("name", losses())
def test_gradcheck(name):
    inputs = [draw(n, 3, seed=n, scale=1.0, dtype=DOUBLE).requires_grad_() for n in (5, 6)]
    inputs.append(torch.tensor(0.7, dtype=DOUBLE, requires_grad=True))
    function = losses()[name]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", losses())
def test_a_row_without_length_is_divided_by_a_constant(name):
    """No projection there: the gradient is that of the row over 1e-8; it and the second derivative are finite."""
    query, key = draw(5, 3, scale=1.0, dtype=DOUBLE), draw(6, 3, seed=1, scale=1.0, dtype=DOUBLE)
    query[2], key[3] = 0, 1e-9
    query.requires_grad_(), key.requires_grad_()
    T = torch.tensor(0.7, dtype=DOUBLE)
    function = losses()[name]
    loss = function(query, key, T).sum()
    inputs = (query,) if name == "supervised_contrastive" else (query, key)
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    assert all(g.isfinite().all() for g in (*first, *second))
    scaled = query.detach().clone()
    scaled[2, 0] = 1e-13  # the same constant divides it
    change = (function(scaled, key, T).sum() - loss).item()
    assert abs(change - first[0][2, 0].item() * 1e-13) < 1e-3 * max(abs(change), 1e-7)


def test_nothing_that_counts():
    query, key = draw(5, 3).requires_grad_(), draw(6, 3, seed=1).requires_grad_()
    none, y = torch.zeros(5, dtype=torch.bool), torch.arange(5)
    for loss in (
        reference.similarity_kl(query, key, draw(5, 2), draw(6, 2), mask=none),
        reference.info_nce(query, key, mask=none, symmetric=True),
        reference.info_nce(query, key, mask=none, logit_bias=torch.tensor(-math.inf)),
        reference.supervised_contrastive(query, torch.zeros(5, dtype=torch.int64), mask=none),
        reference.supervised_contrastive(query, y),  # each alone with its label
        reference.similarity_kl(query, key[:1], draw(5, 2), draw(1, 2)),  # a softmax over one key
        reference.info_nce(query[:1], key[:1], symmetric=True),
        reference.supervised_contrastive(query[:1], y[:1]),
    ):
        found = torch.autograd.grad(loss, (query, key), allow_unused=True)
        assert loss == 0 and not any(gradient.any() for gradient in found if gradient is not None)
