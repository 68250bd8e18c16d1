"""The mixture alone: `peer_attention` and `mean_probabilities` against their twins, and as citizens of PyTorch."""

import itertools
import math

import pytest
import torch
from helpers import FLOATS, assert_accurate, assert_same_formula, draw, threads
from peer_losses import problem

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
DOUBLE = torch.float64
# Samples, peers, classes, width: degenerate, binary, the paper's on CIFAR, odd, aligned, the most peers, a vocabulary.
SIZES = [(1, 1, 1, 1), (3, 2, 2, 1), (64, 3, 100, 8), (5, 4, 1001, 33), (4, 8, 1000, 64), (2, 32, 17, 5), (1, 3, 32768, 16)]


def attention(mix):
    def function(peers, query, key):
        return kd.peer_attention(query, key, peers, mix=mix, temperature=2.0, return_attention=True)

    return function


def mean(peers, query, key):
    return (kd.mean_probabilities(peers, temperature=2.0),)


FUNCTIONS = {"logits": attention("logits"), "probs": attention("probs"), "mean": mean}


def inputs(*size, **options):
    peers, _, query, key, *_ = problem(*size, **options)
    return peers, query, key


def upstream(peers, outputs):
    """Of the mixture, and of the attention where there is one."""
    samples, count, classes = peers.shape
    arithmetic = torch.promote_types(peers.dtype, torch.float32)
    rows = (samples, classes) if outputs == 1 else (samples, count, classes)
    mixture = draw(*rows, seed=20, dtype=peers.dtype, device=peers.device)
    return [mixture, draw(samples, count, count, seed=21, dtype=arithmetic, device=peers.device)][:outputs]


def run(backend, function, *tensors, above=None):
    """Outputs, and the gradient of each tensor, 0 where it is not used."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with kd.backend(backend):
        outputs = function(*tensors)
        above = upstream(tensors[0], len(outputs)) if above is None else above
        gradients = torch.autograd.grad(outputs, tensors, above, materialize_grads=True)
    return *[output.detach() for output in outputs], *gradients


def check(function, *tensors):
    """The compiled op of the tensors' device errs by roundings alone; returns what it computes."""
    ours = run(tensors[0].device.type, function, *tensors)
    above = [each.double() for each in upstream(tensors[0], len(ours) - 3)]
    assert_accurate(ours, lambda: run("reference", function, *[tensor.double() for tensor in tensors], above=above))
    return ours


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(machine, size, name):
    check(FUNCTIONS[name], *inputs(*size, device=machine))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(machine, dtype, name):
    tensors = inputs(5, 3, 67, 9, dtype=dtype, device=machine)
    mixture, *others = check(FUNCTIONS[name], *tensors)
    assert mixture.dtype == dtype and all(gradient.dtype == dtype for gradient in others[-3:])
    if name != "mean":
        assert others[0].dtype == (DOUBLE if dtype == DOUBLE else torch.float32)


def test_features_of_another_dtype(device):
    """The mixture stays in that of the logits; one of the two in float64 is float64 arithmetic."""
    for of_peers, of_features in itertools.product((torch.bfloat16, torch.float32, DOUBLE), repeat=2):
        peers, *features = inputs(device=device)
        tensors = peers.to(of_peers), *[tensor.to(of_features) for tensor in features]
        function, above = FUNCTIONS["probs"], [upstream(tensors[0], 1)[0], torch.ones(6, 3, 3, device=device)]
        above[0] = draw(6, 3, 10, seed=20, dtype=of_peers, device=device)
        above[1] = above[1].to(DOUBLE if DOUBLE in (of_peers, of_features) else torch.float32)
        ours = run(device, function, *tensors, above=above)
        assert ours[0].dtype == of_peers and ours[1].dtype == above[1].dtype
        doubles = [tensor.double() for tensor in tensors], [each.double() for each in above]
        assert_accurate(ours[1:], lambda: run("reference", function, *doubles[0], above=doubles[1])[1:])
        assert_accurate(ours[:1], lambda: run("reference", function, *doubles[0], above=doubles[1])[:1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts(device, name):
    tensors = inputs(dtype=DOUBLE, device=device)
    function = FUNCTIONS[name]
    expected = run(device, function, *tensors)
    above = upstream(tensors[0], len(expected) - 3)
    for layout in (
        lambda tensor: tensor.mT.contiguous().mT,
        lambda tensor: tensor.movedim(0, -1).contiguous().movedim(-1, 0),
        lambda tensor: torch.stack([tensor, tensor * nan], -1)[..., 0],
    ):
        ours = run(device, function, *map(layout, tensors), above=list(map(layout, above)))
        assert_same_formula(ours, expected)
    # A sum sends the same number everywhere: a tensor of strides 0.
    ones = [torch.ones((), dtype=each.dtype, device=device).expand(each.shape) for each in above]
    ours = run(device, function, *tensors, above=ones)
    assert_same_formula(ours, run("reference", function, *tensors, above=ones))


def test_a_list_of_peers(device):
    peers, query, key = inputs(device=device)
    with kd.backend(device):
        for each in (list, tuple):
            assert torch.equal(kd.peer_attention(query, key, each(peers.unbind(1))), kd.peer_attention(query, key, peers))
            assert torch.equal(kd.mean_probabilities(each(peers.unbind(1))), kd.mean_probabilities(peers))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_samples(device, name):
    tensors = [tensor[:0] for tensor in inputs(device=device)]
    found = run(device, FUNCTIONS[name], *tensors)
    assert found[0].shape == ((0, 10) if name == "mean" else (0, 3, 10))
    assert [gradient.shape for gradient in found[-3:]] == [tensor.shape for tensor in tensors]


def test_logits_are_mixed_at_no_temperature(device):
    peers, query, key = inputs(device=device)
    with kd.backend(device):
        assert torch.equal(kd.peer_attention(query, key, peers, temperature=9.0), kd.peer_attention(query, key, peers))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_impossible_class(machine, name):
    """-inf in every row: the mixture of the other classes, and nothing of that one. Attention of 0 to some peers."""

    def possible(peers, query, key):
        mixture, *weights = FUNCTIONS[name](peers, query, key)
        return mixture[..., :8], *weights

    peers, query, key = inputs(classes=9, dtype=DOUBLE, device=machine)
    peers[..., 8] = -inf
    above = upstream(peers[..., :8], 1 if name == "mean" else 2)
    for scale in (1, 200):
        *outputs, by_peers, by_query, by_key = run(machine, possible, peers, scale * query, key, above=above)
        narrow = run(machine, FUNCTIONS[name], peers[..., :8], scale * query, key, above=above)
        assert not by_peers[..., 8].any()
        assert_same_formula((*outputs, by_peers[..., :8], by_query, by_key), narrow)
    with kd.backend(machine):
        absent = FUNCTIONS[name](peers, query, key)[0][..., 8]
    assert (absent == (-inf if name == "logits" else 0)).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_do_not_depend_on_threads(name):
    tensors = inputs(64, 3, 300, 16)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run("cpu", FUNCTIONS[name], *tensors))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


# Backward


@pytest.mark.parametrize("mix", ["logits", "probs"])
def test_either_output_alone_and_either_gradient_alone(device, mix):
    whole = inputs(dtype=DOUBLE, device=device)
    for at in (0, 1):

        def output(peers, query, key, at=at, mix=mix):
            return (FUNCTIONS[mix](peers, query, key)[at],)

        above = [upstream(whole[0], 2)[at]]
        ours, expected = (run(backend, output, *whole, above=above) for backend in (device, "reference"))
        assert_same_formula(ours, expected)
        for place in range(3):
            given = [tensor.clone().requires_grad_(place == which) for which, tensor in enumerate(whole)]
            with kd.backend(device):
                (found,) = output(*given)
                (gradient,) = torch.autograd.grad(found, given[place], above, materialize_grads=True)
            assert_same_formula(gradient, expected[1 + place])
    with kd.backend(device):
        assert not any(output.requires_grad for output in FUNCTIONS[mix](*whole))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(device, name):
    given = [tensor.requires_grad_() for tensor in inputs(2, 3, 4, 2, dtype=DOUBLE, device=device)]
    given = given[:1] if name == "mean" else given
    function = FUNCTIONS[name]
    wanted = (lambda peers: function(peers, None, None)) if name == "mean" else function
    with kd.backend(device):
        assert torch.autograd.gradcheck(wanted, given) and torch.autograd.gradgradcheck(wanted, given)


def test_a_second_backward(device):
    peers, query, key = (tensor.requires_grad_() for tensor in inputs(device=device))
    with kd.backend(device):
        mixture, weights = FUNCTIONS["probs"](peers, query, key)
        loss = (mixture**2).sum() + (weights**3).sum()
        first, second = (torch.autograd.grad(loss, (peers, query, key), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


# PyTorch


@pytest.mark.parametrize("mix", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DOUBLE], ids=str)
def test_opcheck(device, dtype, mix):
    tensors = [tensor.requires_grad_() for tensor in inputs(dtype=dtype, device=device)]
    op, backward = torch.ops.kdkernels.peer_mixture.default, torch.ops.kdkernels.peer_mixture_backward.default
    for given in (tensors, (tensors[0].detach(), *tensors[1:]), (tensors[0], None, None)):
        torch.library.opcheck(op, (*given, 2.0, mix))
        detached = [None if tensor is None else tensor.detach() for tensor in given]
        mixture, weights = op(*detached, 2.0, mix)
        for wanted in ((True, True, True), (False, True, False)):
            wanted = [want and tensor is not None for want, tensor in zip(wanted, given)]
            grad_attention = None if given[1] is None else weights
            torch.library.opcheck(backward, (mixture, grad_attention, *detached, weights, 2.0, mix, *wanted))


def test_registered_autograd_is_the_one_of_the_functions(device):
    tensors = [tensor.requires_grad_() for tensor in inputs(dtype=DOUBLE, device=device)]
    above = upstream(tensors[0], 2)
    for mix, name in enumerate(("logits", "probs")):
        outputs = torch.ops.kdkernels.peer_mixture(*tensors, 2.0, mix)
        found = torch.autograd.grad(outputs, tensors, above)
        assert_same_formula((*outputs, *found), run("reference", FUNCTIONS[name], *tensors))


@pytest.mark.parametrize("backend, name", [*itertools.product(["library"], FUNCTIONS), ("reference", "probs")])
def test_compile(device, backend, name):
    backend = device if backend == "library" else backend
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    for samples in (6, 9):
        tensors = inputs(samples, dtype=DOUBLE, device=device)
        assert_same_formula(run(backend, compiled, *tensors), run(backend, FUNCTIONS[name], *tensors))


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_func_derivatives_and_vmap(device, name):
    function = FUNCTIONS[name]
    tensors = inputs(2, dtype=DOUBLE, device=device)
    batches = [torch.stack([tensor, 2 * tensor], 1) for tensor in tensors]

    def scalar(*tensors):
        return sum((output**3).sum() for output in function(*tensors))

    first = torch.func.grad(scalar)
    both(device, first, *tensors)
    both(device, torch.func.grad(lambda *t: first(*t).square().sum()), *tensors)
    both(device, torch.vmap(function, 1), *batches)
    both(device, torch.vmap(torch.func.grad(scalar, (0, 1)), (1, None, None)), batches[0], *tensors[1:])


def test_compiled_vmap(device):
    peers, query, key = inputs(dtype=DOUBLE, device=device)
    many = torch.stack([peers, 2 * peers])
    both(device, torch.compile(torch.vmap(FUNCTIONS["probs"], (0, None, None)), backend="aot_eager"), many, query, key)
    both(device, torch.compile(torch.vmap(kd.mean_probabilities), backend="aot_eager"), many)


def test_batched_upstream_gradients(device):
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 3, 4, dtype=DOUBLE, device=device)]
    above = draw(5, 2, 3, 4, dtype=DOUBLE, device=device)

    def jacobian(*tensors):
        mixture, _ = FUNCTIONS["probs"](*tensors)
        return torch.autograd.grad(mixture, tensors, above, is_grads_batched=True)

    both(device, jacobian, *tensors)


def test_autocast(device):
    """Half features of half precision layers; what is computed of them is float32."""
    peers, query, key = inputs(device=device)
    with kd.backend(device):
        expected = FUNCTIONS["probs"](peers, query, key)
        with torch.autocast(device, torch.bfloat16):
            assert all(torch.equal(a, b) for a, b in zip(FUNCTIONS["probs"](peers, query, key), expected))
