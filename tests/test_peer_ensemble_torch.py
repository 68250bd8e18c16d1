"""The losses among peers as citizens of PyTorch: opcheck, torch.compile, torch.func, autocast, what backward may meet."""

import itertools

import pytest
import torch
from helpers import assert_same_formula, draw
from peer_losses import LOSSES, check, problem, run
from torch.utils.checkpoint import checkpoint

import kdkernels as kd
from kdkernels.ops.peer_ensemble import _GATED, _LEAVE_ONE_OUT, _OKDDIP

OPS = torch.ops.kdkernels
DOUBLE = torch.float64


def arguments(name, wanted, dtype=torch.float32, device="cpu"):
    """An op and good arguments, the tensors that are wanted requiring gradients."""
    *tensors, target = problem(dtype=dtype, device=device)
    peers, leader, query, key, gate = (tensor.requires_grad_(want) for tensor, want in zip(tensors, wanted))
    peers_wanted, leader_wanted, query_wanted, key_wanted, gate_wanted = wanted
    numbers = (3.0, 0.7, 1e-7)
    match name:
        case "led" | "probs" | "detached" | "leaderless":
            leader_wanted = leader_wanted and name != "leaderless"
            leader = None if name == "leaderless" else leader
            tensors = peers, leader, query, key, target
            options = int(name == "probs"), name == "detached"
            return OPS.okddip_loss, (*tensors, *numbers, *options, peers_wanted, leader_wanted, query_wanted, key_wanted)
        case "gated":
            return OPS.gated_ensemble_loss, (gate, peers, target, *numbers, gate_wanted, peers_wanted)
        case _:
            return OPS.leave_one_out_loss, (peers, target, *numbers, name == "pairwise", peers_wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_opcheck(device, name):
    for dtype, wanted in (
        (torch.float32, (True,) * 5),
        (torch.float16, (False, True, True, False, True)),
        (DOUBLE, (False,) * 5),
    ):
        op, given = arguments(name, wanted, dtype, device)
        torch.library.opcheck(op.default, given)


@pytest.mark.parametrize("name", LOSSES)
def test_registered_autograd_is_the_one_of_the_functions(device, name):
    """Who calls the op itself, as a compiled graph does, gets the gradients of the reference."""
    op, given = arguments(name, (True,) * 5, DOUBLE, device)
    loss = next(loss for loss in (_OKDDIP, _GATED, _LEAVE_ONE_OUT) if loss.op == op.default)
    tensors, options = given[: loss.tensors], given[loss.tensors :]
    differentiated = [tensor for tensor in tensors[: loss.differentiable] if tensor is not None]
    for flags in (options[-loss.differentiable :], [False] * loss.differentiable):  # not asked for: made up for
        value, *_ = op(*given[: -loss.differentiable], *flags)
        ours = torch.autograd.grad(3 * value, differentiated)
        expected = torch.autograd.grad(3 * loss.reference(tensors, options), differentiated)
        assert_same_formula(ours, expected)


# Tracing the reference takes seconds: one of each function.
COMPILED = [*itertools.product(["library"], LOSSES), *itertools.product(["reference"], ("probs", "gated", "pairwise"))]


@pytest.mark.parametrize("backend, name", COMPILED)
def test_compile(device, backend, name):
    batches = [(6, 1.0), (9, 1.0), (9, 0.5)] if backend == "library" else [(6, 0.5)]  # any size, a ramp-up
    backend = device if backend == "library" else backend

    def step(*tensors, **options):
        loss, parts = LOSSES[name](*tensors, **options)
        return 2 * loss**2, parts

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for samples, weight in batches:
        tensors = problem(samples, dtype=DOUBLE, device=device)
        ours, expected = (run(backend, function, *tensors, kl_weight=weight) for function in (compiled, step))
        assert_same_formula(ours, expected)


def test_compile_by_inductor(device):
    """With what stands before it in a network: two projections, peers in a list."""

    def step(features, query_weight, key_weight, logits, leader, target):
        query, key = (features @ weight for weight in (query_weight, key_weight))
        return kd.okddip_loss([z * 1.0 for z in logits], leader, query, key, target)

    peers, leader, features, *_, target = problem(width=8, dtype=DOUBLE, device=device)
    weights = [draw(8, 2, seed=at, scale=0.3, dtype=DOUBLE, device=device).requires_grad_() for at in (8, 9)]
    compiled = torch.compile(step, fullgraph=True)
    found = []
    with kd.backend(device):
        for function in (compiled, step):
            loss = function(features, *weights, list(peers.unbind(1)), leader, target)
            found.append((loss.detach(), *torch.autograd.grad(loss, weights)))
    assert_same_formula(*found)


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


# Of peers, leader, query, key and gate: those that a loss has.
DIFFERENTIABLE = dict.fromkeys(("led", "probs", "detached"), (0, 1, 2, 3))
DIFFERENTIABLE |= {"leaderless": (0, 2, 3), "gated": (0, 4), "others": (0,), "pairwise": (0,)}


@pytest.mark.parametrize("name", LOSSES)
def test_func_derivatives(device, name):
    *tensors, target = problem(3, dtype=DOUBLE, device=device)
    places = DIFFERENTIABLE[name]

    def square(*inputs):
        return LOSSES[name](*inputs, target) ** 2

    first = torch.func.grad(square, places)
    both(device, first, *tensors)
    both(device, torch.func.grad(lambda *t: sum(g.square().sum() for g in first(*t)), places), *tensors)
    both(device, torch.func.jacrev(square, places), *tensors)


@pytest.mark.parametrize("in_dims", [(0,) * 6, (0, None, None, None, None, None), (None, 1, 2, None, -1, 0)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_vmap(device, name, in_dims):
    drawn = [problem(3, dtype=DOUBLE, device=device, seed=10 * seed) for seed in range(3)]
    tensors = [each[0] if at is None else torch.stack(each, at) for each, at in zip(zip(*drawn), in_dims)]

    def with_parts(*tensors):
        return LOSSES[name](*tensors, return_parts=True)

    def square(*tensors):
        return LOSSES[name](*tensors) ** 2

    places = DIFFERENTIABLE[name]
    both(device, torch.vmap(with_parts, in_dims), *tensors)
    both(device, torch.vmap(torch.func.grad(square, places), in_dims), *tensors)
    both(device, torch.func.grad(lambda *t: torch.vmap(square, in_dims)(*t).sum(), places), *tensors)


# What backward may meet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 3.0, -0.5, 0.0])
def test_upstream_gradients(device, upstream, dtype):
    tensors, factor = problem(dtype=dtype, device=device), torch.tensor(upstream, device=device)
    for function in LOSSES.values():
        check(function, *tensors, upstream=factor)


@pytest.mark.parametrize("name", LOSSES)
def test_two_backward_passes_over_one_graph(device, name):
    """The first gives its buffers away; the second must neither scale them again nor return the same memory."""
    *tensors, target = problem(dtype=DOUBLE, device=device)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    wanted = [tensors[at] for at in DIFFERENTIABLE[name]]
    with kd.backend(device):
        loss = 3 * LOSSES[name](*tensors, target)
        first = torch.autograd.grad(loss, wanted, retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        second = torch.autograd.grad(loss, wanted, retain_graph=True)
        third = torch.autograd.grad(loss, wanted[-1:])
    for a, b, c in zip(first, kept, second):
        assert torch.equal(a, b) and a.data_ptr() != c.data_ptr()
        assert_same_formula(a, c)
    assert_same_formula(third[0], kept[-1])


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(device, name):
    """A gradient penalty: the first derivative is the op's, the second the reference's."""

    def penalty(*tensors):
        *tensors, target = tensors
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
        wanted = [tensors[at] for at in DIFFERENTIABLE[name]]
        loss = 2 * LOSSES[name](*tensors, target)
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        penalized = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(penalized, wanted, retain_graph=True, materialize_grads=True)
        return *first, *second, *torch.autograd.grad(loss, wanted)

    both(device, penalty, *problem(dtype=DOUBLE, device=device))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "detached"])  # differences see what is held constant
def test_gradcheck(device, name):
    *tensors, target = problem(2, 2, 4, 3, dtype=DOUBLE, device=device)
    given = [tensors[at].requires_grad_() for at in DIFFERENTIABLE[name]]

    def loss(*inputs):
        changed = dict(zip(DIFFERENTIABLE[name], inputs))
        return LOSSES[name](*[changed.get(at, tensor) for at, tensor in enumerate(tensors)], target)

    with kd.backend(device):
        assert torch.autograd.gradcheck(loss, given)


@pytest.mark.parametrize("name", LOSSES)
def test_batched_upstream_gradients(device, name):
    def jacobian(*tensors):
        *tensors, target = tensors
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
        wanted = [tensors[at] for at in DIFFERENTIABLE[name]]
        upstream = torch.tensor([1.0, 2.0, -3.0], dtype=DOUBLE, device=device)
        return torch.autograd.grad(LOSSES[name](*tensors, target), wanted, upstream, is_grads_batched=True)

    both(device, jacobian, *problem(dtype=DOUBLE, device=device))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_inference_and_checkpoint(device, name):
    *tensors, target = problem(device=device)
    expected = run(device, LOSSES[name], *tensors, target)
    with torch.autocast(device, torch.bfloat16):
        ours = run(device, LOSSES[name], *tensors, target)
    again = run(
        device, lambda *t, **o: checkpoint(LOSSES[name], *t, use_reentrant=False, **o), *tensors, target
    )
    with kd.backend(device), torch.inference_mode():
        assert LOSSES[name](*tensors, target) == expected[0]
    for found in (ours, again):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_and_no_synchronisation():
    *tensors, target = problem(64, 3, 100, 8, device="cuda")
    tensors = [tensor.requires_grad_() for tensor in tensors]

    def step():
        losses = sum(function(*tensors, target) for function in LOSSES.values())
        mixture = kd.peer_attention(tensors[2], tensors[3], tensors[0], mix="probs", temperature=2.0)
        loss = losses + (mixture * kd.mean_probabilities(tensors[0]).unsqueeze(1)).sum()
        return loss.detach(), *torch.autograd.grad(loss, tensors)

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
