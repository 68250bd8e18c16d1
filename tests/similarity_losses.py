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
    """The compiled op of the tensors' device is as accurate as the reference in the same dtype."""
    ours = run(tensors[0].device.type, function, *tensors, **options)
    eager = run("reference", function, *tensors, **options)
    doubles = {name: double(value) for name, value in options.items()}
    truth = run("reference", function, *map(double, tensors), **doubles)
    arithmetic = torch.finfo(ours[0].dtype).eps
    # What a rounding error of a logit is relative to: the size of the largest, for a gradient over the norm as well.
    normalize, temperature = options.get("normalize", True), options.get("temperature", 0.07)
    features = [tensor.double() for tensor in tensors if tensor.dim()]
    norms = [tensor.norm(dim=1).nan_to_num(1, 1, 1).clamp(min=1e-8) for tensor in features]
    longest = max((norm.max().item() for norm in norms if norm.numel()), default=1.0)
    shortest = min((norm.min().item() for norm in norms if norm.numel()), default=1.0)
    size = 1 + (1 if normalize else longest**2) / float(temperature)
    rows = max(len(features[0]), 1)
    assert_accurate("loss", ours[0], eager[0], truth[0], arithmetic, size * _summed(options, rows))
    for at, (tensor, *gradients) in enumerate(zip(tensors, ours[1:], eager[1:], truth[1:])):
        slope = size / float(temperature) * (1 / shortest if normalize else longest)
        scale = slope * rows if tensor.dim() == 0 else slope
        counted = 1 if options.get("reduction") in ("sum", "none") else rows
        assert_accurate(f"gradient {at}", *gradients, arithmetic, scale / counted)
    return ours


def _summed(options, rows):
    return rows if options.get("reduction") == "sum" else 1


def pairs(queries, keys, width, *, dtype=torch.float32, device="cpu", scale=1.0, seed=0):
    """Features of queries and of keys."""
    return tuple(
        draw(rows, width, seed=seed + i, scale=scale, dtype=dtype, device=device)
        for i, rows in enumerate((queries, keys))
    )
