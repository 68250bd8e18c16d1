"""helpers.py for losses that are differentiated by the student alone."""

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


def check(function, student, *rest, **options):
    """The compiled op of the tensors' device errs by roundings alone; returns what it computes."""
    ours = run(student.device.type, function, student, *rest, **options)
    doubles = [double(tensor) for tensor in rest], {name: double(value) for name, value in options.items()}
    assert_accurate(ours, lambda: run("reference", function, double(student), *doubles[0], **doubles[1]), ("loss", "gradient"))
    assert ours[1].dtype == student.dtype
    return ours
