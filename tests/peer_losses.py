"""helpers.py for losses among peers: one problem for all of them, and each of them as a function of its tensors."""

import torch
from helpers import assert_accurate, double, draw, labels

import kdkernels as kd


def problem(samples=6, peers=3, classes=10, width=5, dtype=torch.float32, device="cpu", seed=0):
    """Peers, leader, query, key, gate and labels."""

    def tensor(*shape, at, scale=3.0):
        return draw(*shape, seed=seed + at, scale=scale, dtype=dtype, device=device)

    return (
        tensor(samples, peers, classes, at=0),
        tensor(samples, classes, at=1),
        tensor(samples, peers, width, at=2, scale=0.5),
        tensor(samples, peers, width, at=3),
        tensor(samples, peers, at=4, scale=0.5),
        labels(samples, classes=classes, seed=seed, device=device),
    )


def led(peers, leader, query, key, gate, target, **options):
    return kd.okddip_loss(peers, leader, query, key, target, **options)


def leaderless(peers, leader, query, key, gate, target, **options):
    return kd.okddip_loss(peers, None, query, key, target, **options)


def probs(peers, leader, query, key, gate, target, **options):
    return kd.okddip_loss(peers, leader, query, key, target, mix="probs", **options)


def detached(peers, leader, query, key, gate, target, **options):
    return kd.okddip_loss(peers, leader, query, key, target, detach_targets=True, **options)


def gated(peers, leader, query, key, gate, target, **options):
    return kd.gated_ensemble_loss(gate, peers, target, **options)


def others(peers, leader, query, key, gate, target, **options):
    return kd.leave_one_out_loss(peers, target, **options)


def pairwise(peers, leader, query, key, gate, target, **options):
    return kd.leave_one_out_loss(peers, target, pairwise=True, **options)


LOSSES = {
    function.__name__: function for function in (led, leaderless, probs, detached, gated, others, pairwise)
}


def run(backend, function, *tensors, upstream=None, **options):
    """(loss, parts, gradient of each float tensor, 0 where it is not used), with this upstream gradient or 1."""
    *tensors, target = tensors
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with kd.backend(backend):
        loss, parts = function(*tensors, target, return_parts=True, **options)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        gradients = torch.autograd.grad(loss, tensors, upstream, materialize_grads=True)
    return loss.detach(), torch.stack([*parts.values()]), *gradients


def check(function, *tensors, **options):
    """The compiled op of the tensors' device errs by roundings alone; returns what it computes."""
    ours = run(tensors[0].device.type, function, *tensors, **options)
    names = ("loss", "parts", *(f"gradient of {name}" for name in ("peers", "leader", "query", "key", "gate")))
    assert_accurate(ours, lambda: run("reference", function, *map(double, tensors), **options), names)
    assert all(gradient.dtype == tensor.dtype for gradient, tensor in zip(ours[2:], tensors))
    return ours
