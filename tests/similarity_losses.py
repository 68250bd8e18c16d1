"""helpers.py for losses of queries and keys: any number of differentiable tensors, one of them maybe a temperature."""

import torch
from helpers import assert_accurate, double, draw

import kdkernels as kd


def run(backend, function, *tensors, upstream=None, **options):
    """(loss, gradient of each tensor, 0 where it is not used), with this upstream gradient or 1."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with kd.backend(backend):
        loss = function(*tensors, **options)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        gradients = torch.autograd.grad(loss, tensors, upstream, materialize_grads=True)
    return loss.detach(), *gradients


def check(function, *tensors, **options):
    """The compiled op of the tensors' device errs by roundings alone; returns what it computes."""
    ours = run(tensors[0].device.type, function, *tensors, **options)
    doubles = {name: double(value) for name, value in options.items()}
    assert_accurate(ours, lambda: run("reference", function, *map(double, tensors), **doubles))
    assert all(gradient.dtype == tensor.dtype for gradient, tensor in zip(ours[1:], tensors))
    return ours


def pairs(queries, keys, width, *, dtype=torch.float32, device="cpu", scale=1.0, seed=0):
    """Features of queries and of keys."""
    return tuple(
        draw(rows, width, seed=seed + i, scale=scale, dtype=dtype, device=device)
        for i, rows in enumerate((queries, keys))
    )
