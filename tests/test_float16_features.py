"""float16 under a loss scale: the scale is the upstream gradient, and the gradient of a loss of features or of peers is as
precise as float16 holds it after that, not before.
"""

import functools

import numerics_features
import pytest
import torch
from helpers import draw, labels
from numerics import as_numpy, compare

import kdkernels as kd

HALF = torch.float16
UPSTREAMS = (65536.0, 1.0, 3.7)
FAMILIES = (
    (numerics_features.SIMILARITY_LOSSES, lambda: numerics_features.features(HALF, count=512, temperature=0.5)),
    (numerics_features.BANK_LOSSES, lambda: numerics_features.bank(HALF)),
    (numerics_features.PEER_LOSSES, lambda: numerics_features.peers(HALF, classes=1000)),
    (numerics_features.PAIR_LOSSES, lambda: numerics_features.peers(HALF, classes=1000)),
)
LOSSES = {name: (loss, make) for losses, make in FAMILIES for name, loss in losses.items()}


@functools.cache
def truth_of(name):
    loss, make = LOSSES[name]
    problem = make()
    return loss.truth(type(problem)(*map(as_numpy, problem)))


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("name", LOSSES)
def test_against_the_formulas(device, name, upstream):
    """Within 4 roundings of float32 arithmetic and the rounding of the result (docs/numerics.md)."""
    loss, make = LOSSES[name]
    problem, truth = make(), truth_of(name)
    with kd.backend(device):
        moved = type(problem)(*[x.to(device) if torch.is_tensor(x) else x for x in problem])
        leaves = {learned: getattr(moved, learned).requires_grad_() for learned in loss.learns}
        (loss.ours(moved) * upstream).backward()
    for learned, leaf in leaves.items():
        assert leaf.grad.dtype is HALF
        expected = truth[f"grad_{learned}"] * upstream
        rounded = [upstream * x for x in truth.get(f"stored_{learned}", [expected.value / upstream])]
        roundings, *_ = compare(leaf.grad, expected, rounded, 2.0**-24)
        assert roundings <= (4 if device == "cpu" else 4 * 2.0**13)  # CUDA's products are TF32


def similarities(reduction, device):
    query, key, teacher_query, teacher_key = (draw(40, 12, seed=s, dtype=HALF, device=device) for s in range(4))
    y, mask = labels(40, classes=5, device=device), torch.arange(40, device=device) % 5 != 2
    temperature = torch.tensor(0.3, dtype=HALF, device=device)
    how = {"mask": mask, "reduction": reduction}
    return (query, key, temperature), {
        "similarity_kl": lambda q, k, t: kd.similarity_kl(q, k, teacher_query.to(q), teacher_key.to(q), **how),
        "info_nce": lambda q, k, t: kd.info_nce(q, k, temperature=t, **how),
        "symmetric": lambda q, k, t: kd.info_nce(q, k, temperature=t, symmetric=True, normalize=False, **how),
        "supervised_contrastive": lambda q, k, t: kd.supervised_contrastive(q, y, temperature=0.3, **how),
    }


def bank(reduction, device):
    embedding, entries = (draw(rows, 9, seed=rows, scale=0.3, dtype=HALF, device=device) for rows in (7, 30))
    index = labels(7, 20, classes=30, device=device)
    return (embedding,), {
        "memory_bank_nce": lambda e: kd.memory_bank_nce(e, entries.to(e), index, temperature=0.5, reduction=reduction)
    }


def scaled_gradients(function, tensors, upstream):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    loss = function(*leaves)
    return torch.autograd.grad(loss, leaves, upstream.to(loss.dtype).expand(loss.shape), materialize_grads=True)


def assert_rounded_once(function, tensors, upstream):
    """The CPU kernels read float16 and the same numbers in float32 alike, and compute alike from there."""
    ours = scaled_gradients(function, tensors, upstream)
    exact = scaled_gradients(function, [tensor.float() for tensor in tensors], upstream)
    for half, single in zip(ours, exact):
        assert half.dtype is HALF and torch.equal(half, single.half())


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none", "elementmean"])
def test_every_reduction_rounds_once(machine, reduction, upstream):
    if machine == "cuda":
        pytest.skip("there the products of half features are others")
    with kd.backend(machine):
        for make in (similarities, bank):
            tensors, losses = make("sum" if make is bank and reduction == "elementmean" else reduction, machine)
            losses.pop("supervised_contrastive", None)  # autograd adds two
            for function in losses.values():
                assert_rounded_once(function, tensors, torch.tensor(upstream))


def peers(device):
    def tensor(*shape, seed):
        return draw(*shape, seed=seed, scale=0.7, dtype=HALF, device=device)

    target = labels(6, classes=10, device=device)
    tensors = (tensor(6, 3, 10, seed=0), tensor(6, 10, seed=1), tensor(6, 3, 5, seed=2), tensor(6, 3, 5, seed=3))
    return tensors, {
        "okddip_loss": lambda z, leader, q, k: kd.okddip_loss(z, leader, q, k, target),
        "gated_ensemble_loss": lambda z, leader, q, k: kd.gated_ensemble_loss(q[..., 0], z, target),
        "leave_one_out_loss": lambda z, leader, q, k: kd.leave_one_out_loss(z, target),
        "pairwise": lambda z, leader, q, k: kd.leave_one_out_loss(z, target, pairwise=True),
    }


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_losses_of_peers_round_once(machine, upstream):
    if machine == "cuda":
        pytest.skip("there sums may be taken in another order")
    with kd.backend(machine):
        tensors, losses = peers(machine)
        for function in losses.values():
            assert_rounded_once(function, tensors, torch.tensor(upstream))


def test_mixtures_of_peers_are_told_the_scale(device):
    """Their backward is an op that reads the upstream gradient, itself float16."""
    query, key, logits = (draw(6, 3, n, seed=n, scale=0.7, dtype=HALF, device=device) for n in (4, 5, 10))
    key = key[..., :4]
    for mix in ("logits", "probs"):
        found = []
        for backend, cast in ((device, torch.Tensor.half), ("reference", torch.Tensor.double)):
            leaves = [cast(tensor).detach().requires_grad_() for tensor in (query, key, logits)]
            with kd.backend(backend):
                mixture = kd.peer_attention(*leaves, mix=mix)
                upstream = draw(6, 3, 10, seed=9, scale=1e-3, dtype=HALF, device=device) * 4096
                found.append(torch.autograd.grad(mixture, leaves, upstream.to(mixture.dtype)))
        for ours, truth in zip(*found):
            # Half a unit of float16, and float32 sums of 10 classes and 3 peers.
            lost = truth.abs() * 2.0**-11 + 2.0**-25 + 64 * 2.0**-24 * truth.abs().max()
            assert ((ours.double() - truth).abs() <= lost).all()


ALL = {**similarities("batchmean", "cpu")[1], **bank("batchmean", "cpu")[1], **peers("cpu")[1]}


def problem(name, device):
    made = similarities("batchmean", device), bank("batchmean", device), peers(device)
    return next((tensors, losses[name]) for tensors, losses in made if name in losses)


@pytest.mark.parametrize("name", ALL)
def test_every_way_to_the_gradient(device, name):
    """Compiled, by torch.func, twice over one graph, with a graph of its own, of the reference."""
    tensors, function = problem(name, device)

    def scaled(*tensors):
        return function(*tensors) * 65536.0

    def gradients(function, **options):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(function(*leaves), leaves, materialize_grads=True, **options)

    with kd.backend(device):
        expected = gradients(scaled)
        torch._dynamo.reset()
        compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
        found = [gradients(compiled), gradients(scaled, create_graph=True)]
        found.append(torch.func.grad(scaled, tuple(range(len(tensors))))(*tensors))
        several = torch.vmap(torch.func.grad(scaled, tuple(range(len(tensors)))))(*[torch.stack([t, t]) for t in tensors])
        found.append([tensor[1] for tensor in several])
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        loss = scaled(*leaves)
        for _ in range(2):
            found.append(torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True))
    for other in found:
        for ours, plain in zip(other, expected):
            assert ours.dtype is HALF and torch.equal(ours, plain)


@pytest.mark.parametrize("name", ALL)
def test_second_derivatives(device, name):
    """Of a penalty on the gradient: the first derivative is the op's, the second the reference's."""
    tensors, function = problem(name, device)
    found = []
    for backend in (device, "reference"):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with kd.backend(backend):
            first = torch.autograd.grad(function(*leaves), leaves, create_graph=True, materialize_grads=True)
            penalty = sum(gradient.float().square().sum() for gradient in first)
            found.append(torch.autograd.grad(penalty, leaves, materialize_grads=True))
    for ours, expected in zip(*found):
        assert ours.dtype is HALF
        torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item() + 1e-7)
