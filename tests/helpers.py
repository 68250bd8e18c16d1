"""Drawing logits, running a loss with its gradients, and comparing errors instead of values."""

import contextlib
import math

import torch

import kdkernels as kd

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def draw(*shape, seed=0, scale=3.0, dtype=torch.float32, device="cpu"):
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)


def labels(*shape, classes, seed=0, device="cpu"):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def run(backend, function, student, teacher, *rest, upstream=None, **options):
    """(loss, gradient of student, gradient of teacher), with this upstream gradient or 1."""
    student, teacher = (logits.detach().requires_grad_() for logits in (student, teacher))
    with kd.backend(backend):
        loss = function(student, teacher, *rest, **options)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        gradients = torch.autograd.grad(loss, (student, teacher), upstream)
    return loss.detach(), *gradients


def double(tensor):
    return tensor.double() if torch.is_tensor(tensor) and tensor.is_floating_point() else tensor


def check(function, student, teacher, *rest, **options):
    """The compiled op of the tensors' device is as accurate as the reference in the same dtype."""
    ours = run(student.device.type, function, student, teacher, *rest, **options)
    eager = run("reference", function, student, teacher, *rest, **options)
    options = {name: double(value) for name, value in options.items()}
    truth = run("reference", function, double(student), double(teacher), *rest, **options)
    arithmetic = torch.finfo(ours[0].dtype).eps
    assert_accurate("loss", ours[0], eager[0], truth[0], arithmetic, _log_size(student, teacher, options))
    assert_accurate("gradient of student", ours[1], eager[1], truth[1], arithmetic)
    assert_accurate("gradient of teacher", ours[2], eager[2], truth[2], arithmetic)
    return ours


def _log_size(student, teacher, options):
    """T^2 times the size of the largest log-probability: a divergence is a difference of such numbers, and a
    rounding error of one moves it whatever its own size."""
    if not student.numel():
        return 0.0
    temperature = torch.as_tensor(options.get("temperature", 4.0)).max().item()
    spread = max(logits.double().nan_to_num(0, 0, 0).abs().max().item() for logits in (student, teacher))
    classes = student.shape[options.get("dim", -1)]
    rows = student.numel() // classes if options.get("reduction") == "sum" else 1
    return rows * (temperature**2 * math.log(1 + classes) + temperature * 2 * spread)


def assert_accurate(name, ours, eager, truth, arithmetic, size=0.0):
    """The error against float64 is at most twice that of eager PyTorch in the same dtype, plus the rounding
    of the stored result and a few roundings (`arithmetic`) of numbers of this size."""
    assert ours.dtype == eager.dtype and ours.shape == eager.shape, name
    for what in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(what(ours), what(truth)), f"{name}: {what.__name__} in other places"
    finite = truth.isfinite()
    if not finite.any():
        return
    stored, ours_is_double = torch.finfo(ours.dtype), ours.dtype == torch.float64
    ours, eager, truth = (tensor[finite].double() for tensor in (ours, eager, truth))
    error, usual, largest = ((x).abs().max().item() for x in (ours - truth, eager - truth, truth))
    allowed = 2 * usual + stored.eps * largest + stored.tiny + 16 * arithmetic * (largest + size)
    if ours_is_double:
        allowed += 1e-12 * largest  # the reference is not more exact than ours here: two roundings of one truth
    assert error <= allowed, f"{name}: error {error:.3g}, eager has {usual:.3g}, allowed {allowed:.3g}"


@contextlib.contextmanager
def threads(count):
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(usual)
