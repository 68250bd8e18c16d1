"""helpers.py for losses that are differentiated by the student alone."""

import math

import torch
from helpers import assert_accurate, double

import kdkernels as kd


def run(backend, function, student, *rest, upstream=None, **options):
    """(loss, gradient of student), with this upstream gradient or 1."""
    student = student.detach().requires_grad_()
    with kd.backend(backend):
        loss = function(student, *rest, **options)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        (gradient,) = torch.autograd.grad(loss, student, upstream)
    return loss.detach(), gradient


def check(function, student, *rest, size=0.0, **options):
    """The compiled op of the tensors' device is as accurate as the reference in the same dtype. `size`: what
    a rounding error of a row's loss may be relative to, beside `log_size`."""
    ours = run(student.device.type, function, student, *rest, **options)
    eager = run("reference", function, student, *rest, **options)
    rest_of_truth = [double(tensor) for tensor in rest]
    options_of_truth = {name: double(value) for name, value in options.items()}
    truth = run("reference", function, double(student), *rest_of_truth, **options_of_truth)
    arithmetic = torch.finfo(ours[0].dtype).eps
    temperature, reduction = options.get("temperature", 1.0), options.get("reduction", "batchmean")
    classes = student.shape[options.get("dim", -1)]
    rows = max(student.numel() // classes, 1)
    size += log_size(student, *rest, temperature=temperature) * (rows if reduction == "sum" else 1)
    assert_accurate("loss", ours[0], eager[0], truth[0], arithmetic, size)
    # T (q - p) / rows: a difference of numbers that may be much larger.
    size = temperature / (1 if reduction in ("sum", "none") else rows)
    assert_accurate("gradient", ours[1], eager[1], truth[1], arithmetic, size)
    return ours


def log_size(student, *rest, temperature=1.0):
    """T^2 times the size of the largest log-probability: one rounding error of it moves the loss of a row."""
    if not student.numel():
        return 0.0
    logits = [tensor for tensor in (student, *rest) if tensor.shape == student.shape]
    spread = max(tensor.double().nan_to_num(0, 0, 0).abs().max().item() for tensor in logits)
    return temperature**2 * math.log(1 + student.numel()) + max(temperature, 1) * 2 * spread
