"""Drawing logits, running a loss with its gradients, and holding its errors to the arithmetic."""

import contextlib

import torch
from roundings import estimate
from torch.utils._pytree import tree_leaves

import kdkernels as kd

# How many times as far off as a twin whose operations are rounded at random: the op takes other operations, and the largest
# of two random errors may be small.
ROUNDINGS = 4
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


def double(value):
    """Of a tensor, or of each in a list."""
    if isinstance(value, list):
        return [double(each) for each in value]
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


def check(function, student, teacher, *rest, **options):
    """The compiled op of the tensors' device errs by roundings alone; returns what it computes."""
    ours = run(student.device.type, function, student, teacher, *rest, **options)
    doubles = {name: double(value) for name, value in options.items()}
    twin = lambda: run("reference", function, double(student), double(teacher), *rest, **doubles)  # noqa: E731
    assert_accurate(ours, twin, ("loss", "gradient of student", "gradient of teacher"))
    assert (ours[1].dtype, ours[2].dtype) == (student.dtype, teacher.dtype)
    return ours


def assert_accurate(ours, twin, names=None):
    """Tensors of a compiled op against `twin`, which computes the same in float64: their errors are a few times what a
    rounding of each operation of the formula costs (roundings.py) in the arithmetic of the first tensor, and what is lost
    by storing them. Where the truth is infinite or NaN, they are too."""
    arithmetic = torch.promote_types(ours[0].dtype, torch.float32)
    found = estimate(twin, torch.finfo(arithmetic).eps / 2)
    for name, mine, (truth, rounding) in zip(names or range(len(ours)), ours, found, strict=True):
        assert mine.shape == truth.shape, name
        for what in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(what(mine), what(truth)), f"{name}: {what.__name__} in other places"
        finite = truth.isfinite()
        if not finite.any():
            continue
        stored, mine, truth = torch.finfo(mine.dtype), mine[finite].double(), truth[finite].double()
        error, largest = (x.abs().max().item() for x in (mine - truth, truth))
        allowed = ROUNDINGS * rounding + stored.eps * largest + stored.tiny
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_equal(ours, expected):
    """Bit for bit, NaN being equal to NaN: the same kernel on the same numbers."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


def assert_same_formula(ours, expected):
    """Two computations of one formula, in float64: they agree to a million of its roundings, where no other formula does."""
    floats = [leaf for leaf in tree_leaves((ours, expected)) if torch.is_tensor(leaf) and leaf.is_floating_point()]
    assert all(leaf.dtype is torch.float64 for leaf in floats)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@contextlib.contextmanager
def threads(count):
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(usual)


NEUTRAL = {"float": 0.0, "bool": False, "int": 0}


def op_arguments(op, **given):
    """The arguments of an op in the order of its schema; absent ones are None, 0 or False."""
    arguments = op._schema.arguments
    assert set(given) <= {argument.name for argument in arguments}
    return tuple(given.get(argument.name, NEUTRAL.get(str(argument.type))) for argument in arguments)
