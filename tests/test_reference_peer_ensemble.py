"""The twins of the losses among peers against plain PyTorch, peer by peer, and against gradients in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, assert_same_formula, draw, labels

from kdkernels import reference

pytestmark = pytest.mark.numeric

DOUBLE = torch.float64
B, P, C, D = 5, 3, 7, 4
inf, nan = math.inf, math.nan


def problem(peers=P, dtype=DOUBLE):
    """Peers, leader, query, key and labels."""
    tensors = draw(B, peers, C), draw(B, C, seed=1), *(draw(B, peers, D, seed=at, scale=1.0) for at in (2, 3))
    return *(tensor.to(dtype).requires_grad_() for tensor in tensors), labels(B, classes=C)


def kl(target, student, temperature, eps):
    """KLs of the repository: batch mean, class sum."""
    target = target + eps
    return temperature**2 * F.kl_div(F.log_softmax(student / temperature, 1), target, reduction="sum") / len(student)


def agree(ours, expected, inputs):
    assert_same_formula(ours, expected)
    gradients = [torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (ours, expected)]
    assert_same_formula(*gradients)


# OKDDip


def okddip(peers, leader, query, key, target, temperature, kl_weight, eps, mix):
    """Loss and parts, one peer after another."""
    attention = torch.softmax(torch.einsum("bpd,bqd->bpq", query, key), 2)
    softened = (peers / temperature).softmax(2)
    parts = dict.fromkeys(("ce_peers", "ce_leader", "kl_peers", "kl_leader"), 0.0)
    for a in range(peers.shape[1]):
        weights = attention[:, a].unsqueeze(2)
        mixed = (weights * softened).sum(1)
        if mix == "logits":
            mixed = ((weights * peers).sum(1) / temperature).softmax(1)
        parts["ce_peers"] += F.cross_entropy(peers[:, a], target)
        parts["kl_peers"] += kl(mixed, peers[:, a], temperature, eps)
    if leader is not None:
        mean = softened.mean(1) if mix == "probs" else (peers.mean(1) / temperature).softmax(1)
        parts["ce_leader"] = F.cross_entropy(leader, target)
        parts["kl_leader"] = kl(mean, leader, temperature, eps)
    ce = parts["ce_peers"] + parts["ce_leader"]
    return ce + kl_weight * (parts["kl_peers"] + parts["kl_leader"]), parts


@pytest.mark.parametrize("mix", ["logits", "probs"])
@pytest.mark.parametrize("led", [True, False])
@pytest.mark.parametrize("peers", [1, 2, 3, 8])
def test_okddip_is_the_published_formula(peers, led, mix):
    peers, leader, query, key, target = problem(peers)
    inputs = (peers, leader, query, key) if led else (peers, query, key)
    leader = leader if led else None
    for temperature, kl_weight, eps in ((3.0, 1.0, 1e-7), (1.5, 0.3, 0.01), (20.0, 2.0, 0.0)):
        options = dict(temperature=temperature, kl_weight=kl_weight, mix=mix)
        arguments = peers, leader, query, key, target
        ours, parts = reference.okddip_loss(*arguments, target_eps=eps, return_parts=True, **options)
        expected, expected_parts = okddip(*arguments, eps=eps, **options)
        agree(ours, expected, inputs)
        assert parts.keys() == expected_parts.keys()
        for name, part in expected_parts.items():
            assert not parts[name].requires_grad
            assert_same_formula(parts[name], torch.as_tensor(part).double().detach())


def test_okddip_is_what_its_docstring_equals():
    peer_logits, leader_logits, query, key, target = problem()
    T, eps, kl_weight = 3.0, 1e-7, 0.5

    def kl(x, z):
        t = F.softmax(x / T, -1) + eps
        return T**2 * F.kl_div(F.log_softmax(z / T, -1), t, reduction="sum") / B

    x = (query @ key.mT).softmax(-1) @ peer_logits
    ce = F.cross_entropy(peer_logits.transpose(1, 2), target[:, None].expand(B, P), reduction="sum") / B
    divergences = kl(x, peer_logits) + kl(peer_logits.mean(1), leader_logits)
    expected = ce + F.cross_entropy(leader_logits, target) + kl_weight * divergences
    ours = reference.okddip_loss(peer_logits, leader_logits, query, key, target, kl_weight=kl_weight)
    agree(ours, expected, (peer_logits, leader_logits, query, key))


def test_okddip_gradients_in_closed_form():
    inputs = peers, leader, query, key, target = problem()
    T, eps = 3.0, 1e-7
    found = torch.autograd.grad(reference.okddip_loss(*inputs, temperature=T, target_eps=eps), inputs[:4])

    peers, leader, query, key = (tensor.detach() for tensor in inputs[:4])
    A = torch.softmax(query @ key.mT, 2)
    hot = F.one_hot(target, C).double()

    def of_divergence(student, target_logits):
        """By the student's logits, and by those of the target."""
        p, log_q = (target_logits / T).softmax(2), (student / T).log_softmax(2)
        q, raised = log_q.exp(), p + eps
        r = raised.log() - log_q
        by_student = T / B * (raised.sum(2, keepdim=True) * q - raised)
        return by_student, T / B * p * (r - (p * r).sum(2, keepdim=True))

    by_peers, dx = of_divergence(peers, A @ peers)
    by_leader, dx_leader = of_divergence(leader.unsqueeze(1), peers.mean(1, keepdim=True))
    dA = dx @ peers.mT
    dE = A * (dA - (A * dA).sum(2, keepdim=True))
    expected = (
        (peers.softmax(2) - hot.unsqueeze(1)) / B + by_peers + A.mT @ dx + dx_leader / P,
        (leader.softmax(1) - hot) / B + by_leader.squeeze(1),
        dE @ key,
        dE.mT @ query,
    )
    assert_same_formula(found, expected)


@pytest.mark.parametrize("mix", ["logits", "probs"])
def test_detached_targets(mix):
    inputs = problem()
    ours = reference.okddip_loss(*inputs, mix=mix, detach_targets=True)
    assert_same_formula(ours, reference.okddip_loss(*inputs, mix=mix))
    found = torch.autograd.grad(ours, inputs[:4])
    assert not found[2].any() and not found[3].any()

    peers, leader, query, key, target = inputs
    constant = (tensor.detach() for tensor in (query, key, peers))
    mixed = reference.peer_attention(*constant, mix=mix, temperature=3.0)
    mean = peers.detach().mean(1) if mix == "logits" else reference.mean_probabilities(peers.detach(), temperature=3.0)
    made = (lambda x: (x / 3).softmax(-1)) if mix == "logits" else (lambda x: x)
    expected = sum(
        F.cross_entropy(peers[:, a], target) + kl(made(mixed[:, a]), peers[:, a], 3.0, 1e-7) for a in range(P)
    )
    expected = expected + F.cross_entropy(leader, target) + kl(made(mean), leader, 3.0, 1e-7)
    assert_same_formula(found[:2], torch.autograd.grad(expected, (peers, leader)))


def test_a_single_peer_attends_to_itself():
    inputs = problem(peers=1)
    _, parts = reference.okddip_loss(*inputs, target_eps=0.0, return_parts=True)
    assert parts["kl_peers"].abs() < 1e-14 and parts["kl_leader"] > 0.1


# ONE


@pytest.mark.parametrize("peers", [1, 2, 4])
def test_gated_ensemble(peers):
    branches, _, _, _, target = problem(peers)
    gate = draw(B, peers, seed=5, dtype=DOUBLE).requires_grad_()  # any finite numbers
    for temperature, kl_weight, eps in ((3.0, 1.0, 1e-7), (1.5, 0.3, 0.01), (2.0, 2.0, 0.0)):
        ensemble = torch.einsum("bp,bpc->bc", gate, branches)
        softened = (ensemble / temperature).softmax(1)
        ce = sum(F.cross_entropy(branches[:, b], target) for b in range(peers))
        divergence = sum(kl(softened, branches[:, b], temperature, eps) for b in range(peers))
        expected = ce + F.cross_entropy(ensemble, target) + kl_weight * divergence
        ours, parts = reference.gated_ensemble_loss(
            gate, branches, target, temperature=temperature, kl_weight=kl_weight, target_eps=eps, return_parts=True
        )
        agree(ours, expected, (gate, branches))
        names = {"ce_branches": ce, "ce_ensemble": F.cross_entropy(ensemble, target), "kl": divergence}
        assert_same_formula(parts, {name: part.detach() for name, part in names.items()})


# CL-ILR and DML


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_leave_one_out(peers, pairwise):
    logits, _, _, _, target = problem(peers)
    for temperature, kl_weight, eps in ((3.0, 1.0, 1e-7), (1.5, 0.3, 0.01), (2.0, 2.0, 0.0)):
        ce = divergence = 0
        for j in range(peers):
            ce = ce + F.cross_entropy(logits[:, j], target)
            others = [logits[:, k] for k in range(peers) if k != j]
            teachers = others if pairwise else [torch.stack(others).mean(0)]
            for teacher in teachers:
                softened = (teacher / temperature).softmax(1)
                divergence = divergence + kl(softened, logits[:, j], temperature, eps) / len(teachers)
        ours, parts = reference.leave_one_out_loss(
            logits,
            target,
            temperature=temperature,
            kl_weight=kl_weight,
            pairwise=pairwise,
            target_eps=eps,
            return_parts=True,
        )
        agree(ours, ce + kl_weight * divergence, (logits,))
        assert_same_formula(parts, {"ce": ce.detach(), "kl": divergence.detach()})


@pytest.mark.parametrize("pairwise", [False, True])
def test_a_peer_without_others_learns_from_its_label(pairwise):
    peers, _, _, _, target = problem(peers=1)
    ours, parts = reference.leave_one_out_loss(peers, target, pairwise=pairwise, return_parts=True)
    assert parts["kl"] == 0
    agree(ours, F.cross_entropy(peers[:, 0], target), (peers,))


# Mixtures


@pytest.mark.parametrize("mix", ["logits", "probs"])
def test_peer_attention(mix):
    peers, _, query, key, _ = problem()
    ours, attention = reference.peer_attention(query, key, peers, mix=mix, temperature=2.0, return_attention=True)
    expected = torch.einsum("bpd,bqd->bpq", query, key).softmax(2)
    sources = peers if mix == "logits" else (peers / 2).softmax(2)
    assert_same_formula(attention, expected)
    agree((ours**2).sum(), ((expected.unsqueeze(3) * sources.unsqueeze(1)).sum(2) ** 2).sum(), (peers, query, key))
    assert torch.equal(reference.peer_attention(query, key, peers, mix=mix, temperature=2.0), ours)


def test_mean_probabilities():
    peers = problem()[0]
    expected = (peers / 2).softmax(2).mean(1)
    agree((reference.mean_probabilities(peers, temperature=2.0) ** 2).sum(), (expected**2).sum(), (peers,))


# All of them


def losses(peers, leader, query, key, target, **options):
    """Of every function and option that changes the arithmetic."""
    gate = query[..., 0]
    return {
        "okddip": reference.okddip_loss(peers, leader, query, key, target, **options),
        "okddip, probs": reference.okddip_loss(peers, leader, query, key, target, mix="probs", **options),
        "gated": reference.gated_ensemble_loss(gate, peers, target, **options),
        "leave one out": reference.leave_one_out_loss(peers, target, **options),
        "pairwise": reference.leave_one_out_loss(peers, target, pairwise=True, **options),
    }


NAMES = [*losses(*problem())]


@pytest.mark.parametrize("name", NAMES)
def test_derivatives(name):
    *inputs, target = problem(peers=2)
    given = [tensor[:2].detach().requires_grad_() for tensor in inputs]

    def loss(*tensors):
        return losses(*tensors, target[:2])[name]

    assert torch.autograd.gradcheck(loss, given) and torch.autograd.gradgradcheck(loss, given)


def test_a_list_of_peers_and_its_stack_are_the_same():
    peers, *others = problem()
    ours, expected = losses([*peers.unbind(1)], *others), losses(peers, *others)
    assert ours == expected
    assert torch.equal(reference.mean_probabilities(peers.unbind(1)), reference.mean_probabilities(peers))


def test_an_empty_batch_gives_0_and_gradients_of_0():
    *inputs, target = problem()
    given = [tensor[:0].detach().requires_grad_() for tensor in inputs]
    for name, loss in losses(*given, target[:0]).items():
        assert loss == 0, name
        found = torch.autograd.grad(loss, given, allow_unused=True)
        assert found[0].shape == (0, P, C)


@pytest.mark.parametrize("weight", [0, 0.0])
def test_a_divergence_of_weight_0_adds_nothing(weight):
    peers, leader, query, key, target = problem()
    broken = torch.full_like(query, nan).requires_grad_()
    for parts in (False, True):
        loss = reference.okddip_loss(peers, leader, broken, key, target, kl_weight=weight, return_parts=parts)
        loss = loss[0] if parts else loss
        found = torch.autograd.grad(loss, (peers, leader, broken, key))
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in found)
        assert not found[2].any() and not found[3].any()
    expected = sum(F.cross_entropy(peers[:, a], target) for a in range(P)) + F.cross_entropy(leader, target)
    assert_same_formula(loss, expected)


def test_an_impossible_class():
    """The mathematics of a problem without that class, whoever is attended to: 0 * -inf is 0."""
    peers, leader, query, key, target = problem()
    query = (60 * query).detach().requires_grad_()  # attention to one peer: weights of 0 in float32
    target = target % (C - 1)
    for dtype in (torch.float32, DOUBLE):
        without = [x.detach().to(dtype).requires_grad_() for x in (peers[..., :-1], leader[..., :-1], query, key)]
        masked = [x.detach().to(dtype) for x in (peers, leader, query, key)]
        masked[0][..., -1] = masked[1][..., -1] = -inf
        masked = [x.requires_grad_() for x in masked]
        ours, expected = (losses(*given, target, target_eps=0.0) for given in (masked, without))
        for name in NAMES:
            a, b = (torch.autograd.grad(x[name], y, allow_unused=True) for x, y in ((ours, masked), (expected, without)))
            assert not a[0][..., -1].any(), name
            pairs = [(ours[name], expected[name]), (a[0][..., :-1], b[0])]
            pairs += [(a[of_query], b[of_query]) for of_query in (2, 3) if a[of_query] is not None]
            assert all(one.isfinite().all() for one, _ in pairs), name
            if dtype is DOUBLE:
                assert_same_formula(*zip(*pairs))


def test_large_logits_are_exact():
    """Differences are: offsets of a peer's logits change neither loss nor gradient, in float32 as in float64."""
    *inputs, target = problem(dtype=torch.float32)
    peers, leader, query, key = (tensor.mul(64).round().div(64).detach().requires_grad_() for tensor in inputs)
    offsets = torch.tensor([1e4, -2e4, 0.0]).view(1, P, 1)
    moved = losses(peers + offsets, leader - 1e4, query, key, target)
    for name, loss in losses(peers, leader, query, key, target).items():
        assert_equal(moved[name], loss)
        for each, expected in zip(
            *(torch.autograd.grad(x, (peers, query), allow_unused=True, retain_graph=True) for x in (moved[name], loss))
        ):
            assert_equal(each, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_in_autocast_too(dtype):
    *inputs, target = problem(dtype=dtype)
    wide = [tensor.detach().float() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        ours = losses(*inputs, target)
    for name, loss in losses(*wide, target).items():
        assert ours[name].dtype is torch.float32
        assert_equal(ours[name], loss)
        (gradient,) = torch.autograd.grad(ours[name], inputs[0])
        assert gradient.dtype is dtype
    _, attention = reference.peer_attention(inputs[2], inputs[3], inputs[0], return_attention=True)
    assert attention.dtype is torch.float32
    assert reference.mean_probabilities(inputs[0]).dtype is dtype


def test_one_double_among_them_makes_the_loss_double():
    peers, leader, query, key, target = problem(dtype=torch.float32)
    for given in (
        (peers.double(), leader, query, key),
        (peers, leader.double(), query, key),
        (peers, leader, query.double(), key.double()),
    ):
        assert reference.okddip_loss(*given, target).dtype is DOUBLE
    assert reference.okddip_loss(peers, leader, query, key, target).dtype is torch.float32
    assert reference.gated_ensemble_loss(query[..., 0].double(), peers, target).dtype is DOUBLE
