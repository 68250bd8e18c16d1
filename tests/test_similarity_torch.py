"""The op as a citizen of PyTorch: opcheck, torch.compile, torch.func, autocast, what backward may meet."""

import pytest
import torch
from helpers import assert_accurate, assert_same_formula, double, draw, labels
from similarity_losses import pairs, run

import kdkernels as kd
from kdkernels._names import KEY_TARGETS, REDUCTIONS
from kdkernels.ops.similarity import _LOSS, _tf32_is_allowed

OP = torch.ops.kdkernels.similarity_loss.default
RANK = torch.ops.kdkernels.similarity_rank.default
DOUBLE = torch.float64


def losses(device, dtype=torch.float32, reduction="batchmean", teacher_dtype=None):
    """Functions of (query [8, 5], key [6, 5], temperature), the rest held; a teacher drawn in `teacher_dtype`."""
    teacher = [rows.to(dtype) for rows in pairs(8, 6, 3, dtype=teacher_dtype or dtype, device=device, seed=8)]
    mask, weight = torch.arange(8, device=device) != 2, draw(8, seed=5, device=device).abs()
    positive, y = labels(8, classes=6, device=device), labels(8, classes=3, device=device)
    bias = draw(6, seed=6, device=device)
    o = {"reduction": reduction}
    return {
        "similarity_kl": lambda q, k, t: kd.similarity_kl(q, k, *teacher, mask=mask, row_weight=weight, **o),
        "info_nce": lambda q, k, t: kd.info_nce(q, k, positive, temperature=t, mask=mask, **o),
        "symmetric": lambda q, k, t: kd.info_nce(
            q, k, positive, temperature=t, symmetric=True, normalize=False, logit_bias=bias, **o
        ),
        "supervised_contrastive": lambda q, k, t: kd.supervised_contrastive(
            torch.cat([q, k[:1]]), torch.cat([y, y[:1]]), temperature=0.3, **o
        ),
    }


NAMES = tuple(losses("cpu"))


def inputs(device, dtype=torch.float32, seed=0):
    return *pairs(8, 6, 5, dtype=dtype, device=device, seed=seed), torch.tensor(0.6, dtype=dtype, device=device)


def arguments(device, target, reduction, wanted, dtype=torch.float32):
    query, key, temperature = inputs(device, dtype)
    arithmetic = torch.promote_types(dtype, torch.float32)
    teacher = pairs(8, 6, 3, dtype=dtype, device=device, seed=8) if target == "teacher" else (None, None)
    label = (labels(8, classes=3, device=device), labels(6, classes=3, device=device))
    query, key = (x.requires_grad_(want) for x, want in zip((query, key), wanted))
    return (
        query,
        key,
        temperature.to(arithmetic).requires_grad_(wanted[2]) if target == "positive" else None,
        *teacher,
        labels(8, classes=6, device=device) if target == "positive" else None,
        *(label if target == "labels" else (None, None)),
        draw(1, 6, device=device, dtype=arithmetic).expand(8, 6) if target == "positive" else None,
        torch.arange(8, device=device) != 2,
        draw(8, seed=5, device=device, dtype=arithmetic).abs() if target == "teacher" else None,
        0.5,
        KEY_TARGETS[target],
        True,
        target == "positive",
        target == "teacher",
        -1,
        False,
        REDUCTIONS[reduction],
        *wanted[:2],
        wanted[2] and target == "positive",
    )


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("target", KEY_TARGETS)
def test_opcheck(device, target, reduction):
    for dtype, wanted in (
        (torch.float32, (True, True, True)),
        (torch.float16, (False, True, False)),
        (DOUBLE, (False, False, False)),
    ):
        torch.library.opcheck(OP, arguments(device, target, reduction, wanted, dtype))


def test_opcheck_of_ranks(device):
    query, key, _ = inputs(device)
    for layout in (query, query.T.contiguous().T):
        torch.library.opcheck(RANK, (layout, key, labels(8, classes=6, device=device), True, False))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("target", KEY_TARGETS)
def test_registered_autograd_is_the_one_of_the_functions(device, target, reduction):
    """Who calls the op itself, as a compiled graph does, gets the gradients of the reference."""
    given = arguments(device, target, reduction, (True, True, True), DOUBLE)
    differentiated = [tensor for tensor in given[:3] if tensor is not None]
    for flags in (given[-3:], (False, False, False)):  # gradients not asked for are made up for
        loss, *_ = OP(*given[:-3], *flags)
        upstream = draw(8, seed=3, device=device) if reduction == "none" else torch.tensor(3.0, device=device)
        ours = torch.autograd.grad(loss, differentiated, upstream)
        expected = _LOSS.reference(given[: _LOSS.tensors], given[_LOSS.tensors :])
        assert_same_formula(ours, torch.autograd.grad(expected, differentiated, upstream))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_compile(device, backend, name, reduction):
    function = losses(device, DOUBLE, reduction)[name]
    backend = device if backend == "library" else backend

    def step(*tensors):
        return (2 * function(*tensors) ** 2).sum()

    torch._dynamo.reset()  # `step` is one piece of code, of which only so many forms are kept
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (0, 3):
        given = inputs(device, DOUBLE, seed)
        assert_same_formula(run(backend, compiled, *given), run(backend, step, *given))


def test_compile_by_inductor(device):
    def step(query, key, teacher_query, teacher_key, temperature):
        positive = torch.arange(query.shape[0], device=query.device) // 3
        rank = kd.similarity_rank(teacher_query, teacher_key, positive)
        trusted = kd.select_trusted_rows(rank, 0.75)
        ours = kd.similarity_kl(query * 2, key, teacher_query, teacher_key, mask=trusted)
        return ours + 0.5 * kd.info_nce(query, key, positive, temperature=temperature)

    compiled = torch.compile(step, fullgraph=True)
    for images, temperature in ((4, 0.5), (5, 0.5), (6, 0.3)):  # dynamic rows, an annealed temperature
        student, teacher = (pairs(3 * images, images, width, dtype=DOUBLE, device=device) for width in (5, 7))
        ours = run(device, lambda q, k: compiled(q, k, *teacher, temperature), *student)
        assert_same_formula(ours, run(device, lambda q, k: step(q, k, *teacher, temperature), *student))


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("name", NAMES)
def test_func_derivatives(device, name, reduction):
    function = losses(device, DOUBLE, reduction)[name]
    given = inputs(device, DOUBLE)

    def scalar(*tensors):
        return (function(*tensors) ** 2).sum()

    first = torch.func.grad(scalar, (0, 1))
    both(device, first, *given)
    both(device, torch.func.grad(lambda *t: sum(g.square().sum() for g in first(*t)), (0, 1)), *given)
    if reduction == "none":
        both(device, torch.func.jacrev(function, (0, 1)), *given)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 2, 0)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_vmap(device, name, in_dims, reduction):
    function = losses(device, DOUBLE, reduction)[name]
    each = [[inputs(device, DOUBLE, seed=seed)[at] + seed / 50 for seed in range(3)] for at in range(3)]
    given = [tensors[0] if at is None else torch.stack(tensors, at) for tensors, at in zip(each, in_dims)]

    def scalar(*tensors):
        return (function(*tensors) ** 2).sum()

    both(device, torch.vmap(function, in_dims), *given)
    both(device, torch.vmap(torch.func.grad(scalar, (0, 1)), in_dims), *given)
    both(device, torch.func.grad(lambda *t: (torch.vmap(function, in_dims)(*t) ** 3).sum(), (0, 1)), *given)


def test_vmap_of_ranks(device):
    query, key = draw(3, 8, 5, device=device), draw(6, 5, seed=1, device=device)
    positive = labels(3, 8, classes=6, device=device)

    def trusted(query, positive):
        return kd.select_trusted_rows(kd.similarity_rank(query, key, positive), 0.5)

    with kd.backend(device):
        ours = torch.vmap(trusted)(query, positive)
        assert torch.equal(ours, torch.stack([trusted(q, p) for q, p in zip(query, positive)]))


@pytest.mark.parametrize("name", ["info_nce", "similarity_kl"])
def test_batched_upstream_gradients(device, name):
    function = losses(device, DOUBLE, "none")[name]

    def jacobian(query, key, temperature):
        tensors = query.requires_grad_(), key.requires_grad_()
        loss = function(*tensors, temperature)
        return torch.autograd.grad(loss, tensors, torch.eye(8, dtype=DOUBLE, device=device), is_grads_batched=True)

    both(device, jacobian, *inputs(device, DOUBLE))


# What backward may meet


@pytest.mark.parametrize("upstream", [1.0, 3.0, -0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_upstream_gradients(device, upstream, dtype):
    given, factor = inputs(device, dtype), torch.tensor(upstream, device=device)
    of_doubles = losses(device, DOUBLE, teacher_dtype=dtype)
    for name, function in losses(device, dtype).items():
        ours = run(device, function, *given, upstream=factor)
        twin = lambda name=name: run("reference", of_doubles[name], *map(double, given), upstream=factor)  # noqa: E731
        assert_accurate(ours, twin)


@pytest.mark.parametrize("name", NAMES)
def test_upstream_gradients_per_query(device, name):
    function = losses(device, DOUBLE, "none")[name]
    query, key, temperature = inputs(device, DOUBLE)
    rows = 9 if name == "supervised_contrastive" else 8
    for upstream in (draw(rows, seed=2, device=device), torch.tensor(2.0, device=device).expand(rows)):
        found = [
            run(backend, lambda q, k: function(q, k, temperature), query, key, upstream=upstream)
            for backend in (device, "reference")
        ]
        assert_same_formula(*found)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_two_backward_passes_over_one_graph(device, reduction):
    """The first gives its buffers away; the second must neither scale them again nor return the same memory."""
    query, key, temperature = (tensor.requires_grad_() for tensor in inputs(device, DOUBLE))
    with kd.backend(device):
        for name, function in losses(device, DOUBLE, reduction).items():
            loss = 3 * function(query, key, temperature).sum()
            wanted = (query, key, temperature) if name in ("info_nce", "symmetric") else (query, key)
            first = torch.autograd.grad(loss, wanted, retain_graph=True)
            kept = [gradient.clone() for gradient in first]
            second = torch.autograd.grad(loss, wanted, retain_graph=True)
            third = torch.autograd.grad(loss, wanted[:1])
            for a, b, c in zip(first, kept, second):
                assert torch.equal(a, b) and a.data_ptr() != c.data_ptr()
                assert_same_formula(a, c)
            assert_same_formula(third[0], kept[0])


def test_one_of_the_gradients(device):
    """Keys that are constants, as a queue's, cost nothing; nor does a loss that nobody differentiates."""
    query, key, temperature = inputs(device, DOUBLE)
    with kd.backend(device):
        for function in losses(device, DOUBLE).values():
            assert not function(query, key, temperature).requires_grad
    function = losses(device, DOUBLE)["info_nce"]
    whole = run(device, function, query, key, temperature)
    for at, other in ((0, lambda x: function(x, key, temperature)), (1, lambda x: function(query, x, temperature))):
        assert_same_formula(run(device, other, (query, key)[at])[1], whole[1 + at])


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(device, name, reduction):
    """A gradient penalty: the first derivative is the op's, the second the reference's."""
    results = []
    for backend in (device, "reference"):
        query, key, temperature = (tensor.requires_grad_() for tensor in inputs(device, DOUBLE))
        with kd.backend(backend):
            losses_of = losses(device, DOUBLE, reduction)[name](query, key, temperature)
            loss = (losses_of * torch.arange(1, losses_of.numel() + 1, device=device)).sum()
            first = torch.autograd.grad(loss, (query, key), create_graph=True)
            penalty = sum(gradient.square().sum() for gradient in first)
            second = torch.autograd.grad(penalty, (query, key, temperature), allow_unused=True, retain_graph=True)
            again = torch.autograd.grad(loss, (query, key))
        results.append((*first, *[s if s is not None else torch.zeros((), dtype=DOUBLE) for s in second], *again))
    assert_same_formula(*results)


def test_gradcheck(device):
    given = [tensor.requires_grad_() for tensor in inputs(device, DOUBLE)]
    with kd.backend(device):
        for reduction in ("none", "batchmean"):
            for function in losses(device, DOUBLE, reduction).values():
                assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(losses(device, DOUBLE)["symmetric"], given)


def test_a_learned_logit_scale(device):
    """CLIP's: the gradient reaches the parameter behind the temperature, which may lie in another dtype."""
    given, of_loss = inputs(device), torch.tensor(0.3, device=device)

    def found(backend, dtype):
        query, key, _ = (tensor.to(dtype) for tensor in given)
        scale = torch.nn.Parameter(torch.tensor(2.0, dtype=DOUBLE, device=device))
        as_it_is = torch.nn.Parameter(of_loss.to(dtype))
        with kd.backend(backend):
            loss = kd.info_nce(query[:6], key, temperature=1 / scale.exp(), symmetric=True)
            loss.backward()
            kd.nn.InfoNCE(temperature=as_it_is)(query[:6], key).backward()
        return loss.detach(), scale.grad, as_it_is.grad

    assert_accurate(found(device, torch.float32), lambda: found("reference", DOUBLE))


def test_autocast(device):
    features, weight = draw(12, 10, device=device), torch.randn(10, 10, device=device, requires_grad=True)
    with kd.backend(device), torch.autocast(device, torch.bfloat16):
        projected = features @ weight
        assert projected.dtype is torch.bfloat16
        loss = kd.info_nce(projected[:6], projected[6:])
        assert loss.dtype is torch.float32
    loss.backward()
    projected = projected.detach()
    with kd.backend(device):
        expected = kd.info_nce(projected[:6], projected[6:])  # half features are read as they are
    assert loss == expected and weight.grad is not None


def test_inference_mode_and_checkpoint(device):
    from torch.utils.checkpoint import checkpoint

    query, key, temperature = inputs(device)
    function = losses(device)["symmetric"]
    expected = run(device, function, query, key, temperature)
    with kd.backend(device):
        with torch.inference_mode():
            assert function(query, key, temperature) == expected[0]
        ours = run(
            device,
            lambda q, k, t: checkpoint(lambda *a: function(*a), q, k, t, use_reentrant=False),
            query,
            key,
            temperature,
        )
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def test_tf32_follows_the_users_choice():
    """By either of its names, compiled or not."""
    matmul = torch.backends.cuda.matmul
    compiled = torch.compile(lambda x: x + _tf32_is_allowed(), fullgraph=True, backend="eager")
    before = matmul.fp32_precision
    try:
        for name, value, expected in (
            ("allow_tf32", True, True),
            ("allow_tf32", False, False),
            ("fp32_precision", "tf32", True),  # after which allow_tf32 cannot be asked
            ("fp32_precision", "ieee", False),
        ):
            setattr(matmul, name, value)
            assert _tf32_is_allowed() is expected and compiled(torch.zeros(())) == expected
    finally:
        matmul.fp32_precision = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph_and_no_synchronisation():
    student, teacher = pairs(96, 32, 64, device="cuda"), pairs(96, 32, 48, device="cuda", seed=4)
    query, key = (features.requires_grad_() for features in student)
    positive, temperature = torch.arange(96, device="cuda") // 3, torch.tensor(0.5, device="cuda")

    def step():
        trusted = kd.select_trusted_rows(kd.similarity_rank(*teacher, positive), 0.75)
        loss = kd.similarity_kl(query, key, *teacher, mask=trusted)
        loss = loss + kd.info_nce(query, key, positive, temperature=temperature)
        return (loss, *torch.autograd.grad(loss, (query, key)))

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_positives_out_of_range_on_a_gpu():
    """Where asking would stall, they spoil their own query alone."""
    query, key, _ = inputs("cuda")
    positive = torch.tensor([0, 6, 2, -1, 4, 5, 0, 1], device="cuda")
    bad = torch.tensor([1, 3], device="cuda")
    for backend in ("cuda", "reference"):
        with kd.backend(backend):
            loss = kd.info_nce(query, key, positive, reduction="none")
            assert loss.isnan().nonzero().flatten().tolist() == bad.tolist()
            assert not kd.similarity_rank(query, key, positive)[bad].any()
