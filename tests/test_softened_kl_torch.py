"""The op as a citizen of PyTorch: opcheck, torch.compile, torch.func, autocast, dispatch by backend."""

import itertools

import pytest
import torch
from helpers import assert_same_formula, draw, labels, op_arguments, run
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import kdkernels as kd

OP = torch.ops.kdkernels.softened_kl.default
NONE, BATCHMEAN = 0, 2


def losses(device, shape=(8, 10)):
    """The three functions of (student, teacher), row tensors held."""
    target = labels(*shape[:-1], classes=shape[-1], device=device)
    mask, weight = target > 1, target.float()
    return {
        "softened_kl": lambda s, t: kd.softened_kl(s, t, temperature=2.0, divergence="jsd", mask=mask),
        "soft_cross_entropy": lambda s, t: kd.soft_cross_entropy(s, t, temperature=weight + 1),
        "kd_loss": lambda s, t: kd.kd_loss(s, t, target, label_smoothing=0.1, row_weight=weight),
        "skewed": lambda s, t: kd.softened_kl(s, t, divergence="reverse", skew=0.2, shared_classes=shape[-1] - 1),
        "total variation": lambda s, t: kd.softened_kl(s, t, divergence="tvd", temperature=2.0),
        "standardized": lambda s, t: kd.kd_loss(s, t, target, standardize=True, temperature=2.0),
        "rows": lambda s, t: kd.kd_loss(s, t, target, reduction="none"),
    }


def arguments(student, teacher, target, reduction, groups, dim, gradients):
    temperature = None if target is None else target.to(torch.promote_types(student.dtype, torch.float32)) + 1
    return op_arguments(
        OP,
        student=student,
        teacher=teacher,
        target=target,
        mask=None if target is None else target > 0,
        row_temperature=temperature,
        denominator=torch.full((max(groups, 1),), 7.0, dtype=torch.float64, device=student.device),
        temperature=2.0,
        beta=0.5,
        scale_by_t2=True,
        kl_weight=1.0,
        ce_weight=1.0,
        label_smoothing=0.1,
        return_parts=target is not None and reduction == BATCHMEAN,
        ignore_index=-100,
        reduction=reduction,
        groups=groups,
        dim=dim,
        grad_student=gradients[0],
        grad_teacher=gradients[1],
    )



LAYOUTS = {
    "plain": lambda device: (draw(4, 6, 5, device=device), 2),
    "class first": lambda device: (draw(4, 6, 5, device=device), 0),
    "channels_last": lambda device: (
        draw(2, 6, 3, 4, device=device).to(memory_format=torch.channels_last),
        1,
    ),
    "transposed": lambda device: (draw(5, 6, 4, device=device).permute(2, 1, 0), 2),
    "every other class": lambda device: (draw(4, 6, 10, device=device)[..., ::2], 2),
    "expanded": lambda device: (draw(1, 6, 5, device=device).expand(4, -1, -1), 2),
    "no rows": lambda device: (draw(0, 5, device=device), 1),
    "one row": lambda device: (draw(5, device=device), 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", [NONE, BATCHMEAN])
def test_opcheck(device, layout, reduction):
    for dtype, with_target, gradients in (
        (torch.float32, True, (True, True)),
        (torch.bfloat16, False, (True, False)),
        (torch.float16, True, (True, True)),
        (torch.float64, True, (False, False)),
    ):
        student, dim = LAYOUTS[layout](device)
        student, teacher = student.to(dtype), student.flip(0).to(dtype)
        target = None
        if with_target:
            target = labels(*student.sum(dim).shape, classes=student.shape[dim], device=device)
        student.requires_grad_(gradients[0]), teacher.requires_grad_(gradients[1])
        torch.library.opcheck(OP, arguments(student, teacher, target, reduction, 0, dim, gradients))


def test_opcheck_of_groups(device):
    student, teacher = (draw(4, 6, 5, seed=seed, device=device).requires_grad_() for seed in (0, 1))
    target = labels(4, 6, classes=5, device=device)
    torch.library.opcheck(OP, arguments(student, teacher, target, BATCHMEAN, 4, 2, (True, True)))


def test_opcheck_of_scale_gradient(device):
    for gradient, upstream in (
        (draw(4, 5, device=device), draw(device=device)),
        (draw(4, 5, device=device), draw(4, device=device)),
    ):
        torch.library.opcheck(torch.ops.kdkernels.scale_gradient_.default, (gradient, upstream, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_scale_gradient_is_the_product(machine, dtype):
    gradient = draw(3, 17, 5, 600, dtype=dtype, device=machine)  # more than one thread takes
    wider = torch.promote_types(dtype, torch.float32)
    for order in (torch.contiguous_format, torch.channels_last):
        for shape in ((), (3, 5, 600)):
            ours, upstream = gradient.clone(memory_format=order), draw(*shape, seed=1, dtype=wider, device=machine)
            torch.ops.kdkernels.scale_gradient_(ours, upstream, 1)
            per_row = upstream.unsqueeze(1) if shape else upstream
            assert torch.equal(ours, (gradient.to(wider) * per_row).to(dtype))


def test_registered_autograd_is_the_one_of_the_functions(device):
    """Who calls the op itself, as a compiled graph does, gets the same gradients."""
    student, teacher = (draw(8, 10, seed=seed, device=device).requires_grad_() for seed in (0, 1))
    options = dict(temperature=2.0, beta=0.5, scale_by_t2=True, kl_weight=1.0, reduction=BATCHMEAN, dim=1)
    expected = run(device, kd.softened_kl, student, teacher, temperature=2.0)
    for flags in (
        (True, True),
        (False, False),
    ):  # gradients that the forward pass was not asked for are made up for
        wanted = dict(grad_student=flags[0], grad_teacher=flags[1])
        loss, *_ = OP(*op_arguments(OP, student=student, teacher=teacher, **options, **wanted))
        gradients = torch.autograd.grad(loss, (student, teacher))
        assert all(torch.equal(a, b) for a, b in zip((loss, *gradients), expected))


def test_what_nobody_asks_for_is_none(device):
    student, teacher = (draw(8, 10, seed=seed, device=device) for seed in (0, 1))
    options = dict(temperature=2.0, scale_by_t2=True, kl_weight=1.0, reduction=BATCHMEAN, dim=1)
    loss, *others = OP(*op_arguments(OP, student=student, teacher=teacher, **options))
    assert loss.isfinite() and others == [None] * 5


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(op.name())
        return op(*args, **(kwargs or {}))


def test_a_mode_and_a_profiler_see_the_op(device):
    """Without them its kernel is called at once."""
    student, teacher = (draw(8, 10, seed=seed, device=device) for seed in (0, 1))
    with kd.backend(device), Seen() as seen:
        kd.softened_kl(student, teacher)
    assert "kdkernels::softened_kl" in seen.names
    with kd.backend(device), torch.profiler.profile() as profile:
        kd.softened_kl(student, teacher)
    assert "kdkernels::softened_kl" in {event.name for event in profile.events()}


def test_logits_whose_sign_is_still_to_be_changed(device):
    """The imaginary part of a conjugate is a view that is negated when it is read."""
    numbers = torch.complex(draw(8, 10, device=device), draw(8, 10, seed=1, device=device))
    student, teacher = numbers.conj().imag, draw(8, 10, seed=2, device=device)
    assert student.is_neg()
    expected = run(device, kd.softened_kl, student.resolve_neg().clone(), teacher)
    assert all(torch.equal(a, b) for a, b in zip(run(device, kd.softened_kl, student, teacher), expected))


def test_make_fx(device):
    """A graph of values: it must look at none of them, an upstream gradient of 1 either."""

    def gradient(student, teacher):
        student = student.detach().requires_grad_()
        return torch.autograd.grad(kd.softened_kl(student, teacher, temperature=2.0), student)

    first, second = ([draw(8, 10, seed=seed + at, device=device) for at in (0, 1)] for seed in (0, 2))
    with kd.backend(device):
        graph = make_fx(gradient)(*first)
        assert torch.equal(*graph(*second), *gradient(*second))


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("name", losses("cpu"))
def test_compile(device, backend, name):
    function = losses(device)[name]
    backend = device if backend == "library" else backend
    torch._dynamo.reset()  # the same lines compile all of these
    compiled = torch.compile(lambda s, t: 2 * function(s, t).sum(), fullgraph=True, backend="aot_eager")
    with kd.backend(backend):
        for student, teacher in (
            [draw(8, 10, seed=seed, dtype=torch.float64, device=device) for seed in (i, i + 1)] for i in range(2)
        ):
            ours = run(backend, compiled, student, teacher)
            expected = run(backend, lambda s, t: 2 * function(s, t).sum(), student, teacher)
            assert_same_formula(ours, expected)


def test_compile_by_inductor(device):
    def loss(student, teacher, target, temperature):
        return 0.5 * kd.kd_loss(student * 2, teacher, target, temperature=temperature)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for rows, temperature in (
        (8, 2.0),
        (12, 3.0),
        (20, 4.0),
        (24, 5.0),
    ):  # dynamic rows, an annealed temperature
        student, teacher = (draw(rows, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
        target = labels(rows, classes=10, device=device)
        ours = run(device, compiled, student, teacher, target, temperature=temperature)
        expected = run(device, loss, student, teacher, target, temperature=temperature)
        assert_same_formula(ours, expected)
    assert counter.frame_count == 2


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("name", losses("cpu"))
def test_func_derivatives(device, name):
    student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    function = losses(device)[name]

    def scalar(s, t):
        return (function(s, t) ** 2).sum()

    first = torch.func.grad(scalar, (0, 1))
    both(device, first, student, teacher)
    both(
        device, torch.func.grad(lambda s, t: sum((g**2).sum() for g in first(s, t)), (0, 1)), student, teacher
    )
    both(device, torch.func.jacrev(function, (0, 1)), student, teacher)
    both(device, torch.func.jacrev(torch.func.jacrev(function)), student[:8], teacher)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 2), (-1, 0)], ids=str)
def test_vmap(device, in_dims, reduction):
    shapes = [
        (6, 5, 10) if at is None else tuple(itertools.islice(_insert((6, 5, 10), at, 3), 4)) for at in in_dims
    ]
    student, teacher = (
        draw(*shape, seed=i, dtype=torch.float64, device=device) for i, shape in enumerate(shapes)
    )
    target = labels(3, 6, 10, classes=5, device=device)  # one set of rows each
    weight = draw(6, 10, seed=2, device=device)  # the same for all

    def loss(student, teacher, target):
        return kd.kd_loss(
            student, teacher, target, dim=1, mask=target > 1, row_weight=weight, reduction=reduction
        )

    def scalar(*tensors):
        return (loss(*tensors) ** 2).sum()

    both(device, torch.vmap(loss, (*in_dims, 0)), student, teacher, target)
    both(device, torch.vmap(torch.func.grad(scalar, (0, 1)), (*in_dims, 0)), student, teacher, target)

    def mapped(student, teacher):
        return (torch.vmap(loss, (*in_dims, 0))(student, teacher, target) ** 3).sum()

    both(device, torch.func.grad(mapped, (0, 1)), student, teacher)
    both(
        device, lambda s, t: run(_chosen(), mapped, s, t), student, teacher
    )  # tensors that require grad, mapped


def _insert(shape, at, size):
    at %= len(shape) + 1
    return (*shape[:at], size, *shape[at:])


def _chosen():
    from kdkernels import _backend

    return _backend.choice()


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_nested_vmap(device, reduction):
    student, teacher = (draw(2, 3, 6, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    target = labels(2, 6, classes=10, device=device)  # of the outer map alone

    def loss(student, teacher, target):
        return kd.kd_loss(student, teacher, target, reduction=reduction)

    def scalar(*tensors):
        return (loss(*tensors) ** 2).sum()

    nested = torch.vmap(torch.vmap(loss, (0, 0, None)))
    both(device, nested, student, teacher, target)
    both(
        device,
        torch.vmap(torch.vmap(torch.func.grad(scalar, (0, 1)), (0, 0, None))),
        student,
        teacher,
        target,
    )
    both(
        device,
        torch.vmap(torch.func.grad(lambda s, t, y: torch.vmap(scalar, (0, 0, None))(s, t, y).sum())),
        student,
        teacher,
        target,
    )
    both(
        device,
        lambda s, t: run(_chosen(), lambda s, t: nested(s, t, target).square().sum(), s, t),
        student,
        teacher,
    )
    second = torch.func.grad(lambda s, t, y: torch.func.grad(scalar)(s, t, y).square().sum(), (0, 1))
    both(device, torch.vmap(torch.vmap(second, (0, 0, None))), student, teacher, target)


def test_batched_upstream_gradients(device):
    student, teacher = (
        draw(4, 5, seed=seed, dtype=torch.float64, device=device).requires_grad_() for seed in (0, 1)
    )

    def jacobian(student, teacher):
        loss = kd.softened_kl(student, teacher, reduction="none")
        basis = torch.eye(4, dtype=loss.dtype, device=device)
        return torch.autograd.grad(loss, (student, teacher), basis, is_grads_batched=True)

    both(device, jacobian, student, teacher)


def test_autocast(device):
    student, teacher = draw(8, 10, device=device), draw(8, 10, seed=1, device=device)
    weight = torch.randn(10, 10, device=device, requires_grad=True)
    with kd.backend(device), torch.autocast(device, torch.bfloat16):
        logits = student @ weight
        assert logits.dtype is torch.bfloat16
        loss = kd.softened_kl(logits, teacher, temperature=2.0)  # half against float32: nothing is cast
        assert loss.dtype is torch.float32
    loss.backward()
    logits = logits.detach().requires_grad_()
    with kd.backend(device):
        expected = kd.softened_kl(logits, teacher, temperature=2.0)
        expected.backward()
    assert loss == expected and weight.grad is not None
    double, mixed = student.double(), run(device, kd.softened_kl, student.double(), teacher)
    with torch.autocast(device, torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(run(device, kd.softened_kl, double, teacher), mixed))


def test_inference_mode_and_checkpoint(device):
    from torch.utils.checkpoint import checkpoint

    student, teacher = draw(8, 10, device=device), draw(8, 10, seed=1, device=device)
    expected = run(device, kd.softened_kl, student, teacher)
    with kd.backend(device):
        with torch.inference_mode():
            assert kd.softened_kl(student, teacher) == expected[0]

        def loss(student, teacher):
            return checkpoint(lambda s, t: kd.softened_kl(s * 1, t), student, teacher, use_reentrant=False)

        ours = run(device, loss, student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def test_fake_tensors(device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), kd.backend(device):
        student = torch.empty(8, 10, 4, dtype=torch.float16, device=device, requires_grad=True)
        loss = kd.softened_kl(student, torch.empty(8, 10, 4, device=device), dim=1, reduction="none")
        assert loss.shape == (8, 4) and loss.dtype is torch.float32
        loss.sum().backward()
        assert student.grad.shape == student.shape and student.grad.dtype is torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_and_no_synchronisation():
    student, teacher = draw(64, 100, device="cuda").requires_grad_(), draw(64, 100, seed=1, device="cuda")
    target, factor = labels(64, classes=100, device="cuda"), torch.tensor(2.0, device="cuda")
    temperature = torch.rand(64, device="cuda") + 1

    def step():
        loss = kd.kd_loss(student, teacher, target, temperature=temperature, mask=target > 3) * factor
        return (loss, *torch.autograd.grad(loss, student))

    with kd.backend("cuda"):
        expected = step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
