"""The compiled losses among peers against their twins: sizes, layouts, dtypes, options, corners (peer_losses.check)."""

import itertools
import math

import pytest
import torch
from helpers import FLOATS, assert_equal, assert_same_formula, draw, threads
from peer_losses import LOSSES, check, problem, run
from torch.utils._python_dispatch import TorchDispatchMode

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
# Samples, peers, classes, width. Degenerate, binary, less than a vector, the paper's on CIFAR, odd, aligned, the most peers.
SIZES = [(1, 1, 1, 1), (3, 2, 2, 1), (2, 1, 7, 3), (128, 3, 100, 8), (5, 4, 1001, 33), (4, 8, 1000, 64), (2, 32, 17, 5)]
LARGE = [(2, 3, 32768, 16), (1, 32, 5000, 8)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [*SIZES, *LARGE], ids=str)
def test_sizes(machine, size, name):
    check(LOSSES[name], *problem(*size, device=machine))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(machine, dtype, name):
    tensors = problem(5, 3, 67, 9, dtype=dtype, device=machine)
    loss, parts, *gradients = check(LOSSES[name], *tensors)
    assert loss.dtype == parts.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(gradient.dtype == dtype for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_dtypes(device, name):
    """Peers, leader, features and gate each of their own."""
    for of_peers, of_leader, of_features in itertools.product((torch.bfloat16, torch.float32, torch.float64), repeat=3):
        dtypes = of_peers, of_leader, of_features, of_features, of_features
        *tensors, target = problem(device=device)
        tensors = [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes)]
        check(LOSSES[name], *tensors, target)


OPTIONS = [
    *({"temperature": temperature} for temperature in (0.5, 1.0, 20.0)),
    *({"kl_weight": weight} for weight in (0.0, 6.7e-3, 5.0)),
    *({"target_eps": eps} for eps in (0.0, 0.1)),
    {"temperature": 2.0, "kl_weight": 0.3, "target_eps": 1e-3},
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(machine, options, name):
    check(LOSSES[name], *problem(7, 3, 33, device=machine), **options)


@pytest.mark.parametrize("name", LOSSES)
def test_layouts(device, name):
    """Classes before peers as the published code stacks them, parts of larger tensors, one row for all samples."""
    *tensors, target = problem(6, 3, 10, 5, dtype=torch.float64, device=device)
    expected = run(device, LOSSES[name], *tensors, target)

    def part(tensor):
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), nan, dtype=tensor.dtype, device=device)
        wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2] = tensor
        return wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2]

    for changed in (
        [tensor.mT.contiguous().mT for tensor in tensors],
        [tensor.movedim(0, -1).contiguous().movedim(-1, 0) for tensor in tensors],
        [part(tensor) for tensor in tensors],
    ):
        ours = run(device, LOSSES[name], *changed, target.repeat_interleave(2)[::2])
        assert_same_formula(ours, expected)

    with kd.backend(device):
        expanded = [tensor[:1].expand(tensor.shape) for tensor in tensors]
        ours = LOSSES[name](*expanded, target)
        copies = LOSSES[name](*[tensor.contiguous() for tensor in expanded], target)
    assert torch.equal(ours, copies)


@pytest.mark.parametrize("name", LOSSES)
def test_a_list_of_peers(device, name):
    peers, *others = problem(device=device)
    leaves = [each.clone().requires_grad_() for each in peers.unbind(1)]
    with kd.backend(device):
        loss = LOSSES[name](leaves, *others)
        assert torch.equal(LOSSES[name](tuple(leaves), *others), loss)
        gradients = torch.autograd.grad(loss, leaves)
    expected = run(device, LOSSES[name], peers, *others)
    assert loss == expected[0] and torch.equal(torch.stack(gradients, 1), expected[2])


# Corners


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["library", "reference"])
def test_no_samples(device, backend, name):
    *tensors, target = problem(device=device)
    found = run(device if backend == "library" else backend, LOSSES[name], *[t[:0] for t in tensors], target[:0])
    assert found[0] == 0 and not found[1].any()
    assert [gradient.shape for gradient in found[2:]] == [tensor[:0].shape for tensor in tensors]


def test_a_single_peer(machine):
    tensors = problem(peers=1, device=machine)
    for name in ("others", "pairwise"):
        loss, parts, *_ = run(machine, LOSSES[name], *tensors)
        assert parts[1] == 0 and loss == parts[0]
    _, parts, *_ = run(machine, LOSSES["led"], *tensors, target_eps=0.0)
    assert parts[2].abs() < 1e-5 and parts[3] > 0.1  # it teaches itself nothing, and the leader


@pytest.mark.parametrize("name", LOSSES)
def test_a_divergence_of_weight_0_adds_nothing(machine, name):
    """Not even a NaN of what only it reads, nor to a gradient; the parts still tell it."""
    peers, leader, query, key, gate, target = problem(dtype=torch.float64, device=machine)
    loss, parts, *gradients = run(machine, LOSSES[name], peers, leader, query * nan, key, gate, target, kl_weight=0.0)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[2].any() and not gradients[3].any()
    ce = {"others": 1, "pairwise": 1, "leaderless": 1}.get(name, 2)
    assert_same_formula(loss, parts[:ce].sum())


@pytest.mark.parametrize("name", LOSSES)
def test_an_impossible_class(machine, name):
    """-inf in every row: the mathematics of the problem without it. Attention of 0 to some peers."""
    peers, leader, query, key, gate, target = problem(classes=9, dtype=torch.float64, device=machine)
    target = target % 8
    for scale in (1, 200):
        wide = run(
            machine,
            LOSSES[name],
            torch.cat([peers[..., :8], torch.full_like(peers[..., :1], -inf)], 2),
            torch.cat([leader[:, :8], torch.full_like(leader[:, :1], -inf)], 1),
            scale * query,
            key,
            gate.abs(),
            target,
            target_eps=0.0,
        )
        narrow = run(
            machine, LOSSES[name], peers[..., :8], leader[:, :8], scale * query, key, gate.abs(), target, target_eps=0.0
        )
        assert not wide[2][..., 8].any() and not wide[3][..., 8].any()
        wide = (*wide[:2], wide[2][..., :8], wide[3][:, :8], *wide[4:])
        assert_same_formula(wide, narrow)


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits_are_exact(machine, name):
    """Differences are: an offset of a peer's logits changes neither loss nor gradient, in float32 as in float64."""
    tensors = problem(device=machine)
    peers, leader, *others = [t.mul(64).round().div(64) if t.is_floating_point() else t for t in tensors]
    offsets = torch.tensor([1e4, -2e4, 0.0], device=machine).view(1, 3, 1)
    ours = run(machine, LOSSES[name], peers + offsets, leader - 1e4, *others)
    assert_equal(ours, run(machine, LOSSES[name], peers, leader, *others))


@pytest.mark.parametrize("name", LOSSES)
def test_saturated_attention_and_certain_peers(machine, name):
    peers, leader, query, key, gate, target = problem(classes=33, device=machine)
    for eps in (0.0, 1e-7):
        check(LOSSES[name], 1000 * peers, leader, 1000 * query, key, gate, target, target_eps=eps)


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_stays_one(machine, name):
    for where in (nan, inf):
        peers, *others = problem(device=machine)
        peers[2, 1, 3] = where
        loss, parts, gradient, *_ = run(machine, LOSSES[name], peers, *others)
        assert loss.isnan() and parts[0].isnan() and gradient[2, 1].isnan().any()
        assert gradient[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_labels_out_of_range(device, name):
    """An error on the CPU; where asking would stall, NaN."""
    tensors = problem(device=device)
    function = {"gated": "gated_ensemble_loss", "others": "leave_one_out_loss", "pairwise": "leave_one_out_loss"}
    for bad in (10, -1, -100, 2**40):
        tensors[-1][4] = bad
        for backend in (device, "reference"):
            if device == "cuda":
                assert run(backend, LOSSES[name], *tensors)[0].isnan()
                continue
            message = f"^{function.get(name, 'okddip_loss')}: target contains {bad}, valid labels are 0..9$"
            with pytest.raises(ValueError, match=message):
                run(backend, LOSSES[name], *tensors)


# What is computed, and what is not


class Calls(TorchDispatchMode):
    """How many gradients each call of an op of the package is asked for."""

    def __init__(self):
        super().__init__()
        self.wanted = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace == "kdkernels":
            flags = [argument.name.startswith("grad_") for argument in function._schema.arguments]
            if any(flags):  # not the scaling of gradients
                self.wanted.append(sum(value for value, is_flag in zip(arguments, flags) if is_flag))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_gradients_that_are_asked_for(device, name):
    """One call computes them, and no others."""
    *tensors, target = problem(dtype=torch.float64, device=device)
    whole = run(device, LOSSES[name], *tensors, target)
    with kd.backend(device):
        with Calls() as calls:
            assert not LOSSES[name](*tensors, target).requires_grad
        assert calls.wanted == [0]
        for at in range(5):
            given = [tensor.clone().requires_grad_(at == place) for place, tensor in enumerate(tensors)]
            with Calls() as calls:
                loss = LOSSES[name](*given, target)
                if loss.requires_grad:
                    (gradient,) = torch.autograd.grad(loss, given[at])
                    assert_same_formula(gradient, whole[2 + at])
            assert calls.wanted == [int(loss.requires_grad)]


@pytest.mark.parametrize("name", LOSSES)
def test_results_do_not_depend_on_threads(name):
    tensors = problem(64, 3, 300, 16)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run("cpu", LOSSES[name], *tensors))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


def test_parts_are_named_and_detached(device):
    peers, leader, query, key, gate, target = problem(dtype=torch.float64, device=device)
    peers.requires_grad_()
    with kd.backend(device):
        named = {
            ("ce_peers", "ce_leader", "kl_peers", "kl_leader"): kd.okddip_loss(
                peers, leader, query, key, target, kl_weight=0.25, return_parts=True
            ),
            ("ce_branches", "ce_ensemble", "kl"): kd.gated_ensemble_loss(
                gate, peers, target, kl_weight=0.25, return_parts=True
            ),
            ("ce", "kl"): kd.leave_one_out_loss(peers, target, kl_weight=0.25, return_parts=True),
        }
    for names, (loss, parts) in named.items():
        assert tuple(parts) == names and not any(part.requires_grad for part in parts.values())
        expected = sum(part * (0.25 if name.startswith("kl") else 1) for name, part in parts.items())
        assert_same_formula(loss.detach(), expected)


def test_a_ramp_up(device):
    """A module reads its numbers anew in each call."""
    peers, leader, query, key, _, target = problem(device=device)
    loss = kd.nn.OKDDipLoss()
    with kd.backend(device):
        loss.kl_weight = math.exp(-5)
        expected = kd.okddip_loss(peers, leader, query, key, target, kl_weight=math.exp(-5))
        assert loss(peers, leader, query, key, target) == expected


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_random_problems(machine, seed):
    drawn = draw(8, seed=1000 + seed).abs()
    size = [1 + int(x * factor) for x, factor in zip(drawn, (10, 3, 100, 10))]
    size[1] = min(size[1], 32)
    options = {"temperature": 0.3 + float(drawn[4]), "kl_weight": float(drawn[5]), "target_eps": (0.0, 1e-7)[seed % 2]}
    for function in LOSSES.values():
        check(function, *problem(*size, dtype=FLOATS[seed % 4], device=machine, seed=seed), **options)
