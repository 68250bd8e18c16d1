"""One test per message of the functions of peers: what is refused, as which exception, in which words."""

import math
import re

import pytest
import torch
from peer_losses import problem

import kdkernels as kd

inf, nan = math.inf, math.nan
LOSSES = ("okddip_loss", "gated_ensemble_loss", "leave_one_out_loss")
FUNCTIONS = (*LOSSES, "peer_attention", "mean_probabilities")


def call(function, **changed):
    """With good arguments, but for those changed."""
    peers, leader, query, key, gate, target = problem(4, 3, 5, 2)
    good = {
        "okddip_loss": dict(peer_logits=peers, leader_logits=leader, query=query, key=key, target=target),
        "gated_ensemble_loss": dict(gate=gate, branch_logits=peers, target=target),
        "leave_one_out_loss": dict(peer_logits=peers, target=target),
        "peer_attention": dict(query=query, key=key, peer_logits=peers),
        "mean_probabilities": dict(peer_logits=peers),
    }[function]
    return getattr(kd, function)(**{**good, **changed})


def logits_name(function):
    return "branch_logits" if function == "gated_ensemble_loss" else "peer_logits"


def refuses(function, error, message):
    return pytest.raises(error, match="^" + re.escape(f"{function}: {message}") + "$")


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def backend(request):
    with kd.backend(request.param):
        yield request.param


@pytest.mark.parametrize("function", FUNCTIONS)
def test_good_arguments_pass(function):
    assert call(function).isfinite().all()
    assert call(function, **{logits_name(function): list(torch.zeros(4, 3, 5).unbind(1))}).isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_peer_logits(function):
    name = logits_name(function)
    with refuses(function, TypeError, f"{name} must be a torch.Tensor, or a list of one per peer, got int"):
        call(function, **{name: 3})
    rule = f"{name} must be float32, float16, bfloat16 or float64, got int64; convert it with {name}.float()"
    with refuses(function, TypeError, rule):
        call(function, **{name: torch.zeros(4, 3, 5, dtype=torch.int64)})
    for shape in ((), (4,), (4, 5), (4, 3, 5, 1), (4, 0, 5), (4, 3, 0)):
        rule = f"{name} must be [B, P, C] with at least 1 peer and 1 class, got {list(shape)}"
        with refuses(function, ValueError, rule):
            call(function, **{name: torch.zeros(shape)})
    with refuses(function, ValueError, f"at most 32 peers are possible, got {name} [4, 33, 5]"):
        call(function, **{name: torch.zeros(4, 33, 5)})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_list_of_peers(function):
    name = logits_name(function)
    good = torch.zeros(4, 5)
    with refuses(function, ValueError, f"{name} must have at least 1 peer, got an empty list"):
        call(function, **{name: []})
    with refuses(function, TypeError, f"{name}[1] must be a torch.Tensor, got list"):
        call(function, **{name: [good, [0.0], good]})
    with refuses(function, ValueError, f"{name}[0] must be [B, C], got [4, 3, 5]"):
        call(function, **{name: (torch.zeros(4, 3, 5),)})
    for shape in ((4, 6), (3, 5)):
        rule = f"{name}[0] [4, 5] and {name}[2] {list(shape)} must have equal shapes"
        with refuses(function, ValueError, rule):
            call(function, **{name: [good, good, torch.zeros(shape)]})
    rule = f"{name}[0] and {name}[1] must have one dtype, got float32 and float16; convert one of them"
    with refuses(function, TypeError, rule):
        call(function, **{name: [good, good.half(), good]})
    with refuses(function, ValueError, f"{name}[0] and {name}[1] must be on one device, got cpu and meta"):
        call(function, **{name: [good, good.to("meta"), good]})
    with refuses(function, ValueError, f"at most 32 peers are possible, got {name} [4, 33, 5]"):
        call(function, **{name: [good] * 33})


@pytest.mark.parametrize("function", LOSSES)
def test_target(function):
    name = logits_name(function)
    with refuses(function, TypeError, "target must be a torch.Tensor, got int"):
        call(function, target=1)
    with refuses(
        function,
        TypeError,
        "target must hold integer class labels, got float32; "
        'probabilities of classes are for soft_cross_entropy(student, target, teacher_kind="probs")',
    ):
        call(function, target=torch.zeros(4, 5))
    for shape in ((), (3,), (4, 3)):
        rule = f"target must have one label per sample of {name} [4, 3, 5], got {list(shape)}"
        with refuses(function, ValueError, rule):
            call(function, target=torch.zeros(shape, dtype=torch.int64))
    for bad in (5, -1, -100):
        with refuses(function, ValueError, f"target contains {bad}, valid labels are 0..4"):
            call(function, target=torch.tensor([0, bad, 4, bad]))
    with refuses(function, ValueError, f"{name} and target must be on one device, got cpu and meta"):
        call(function, target=torch.zeros(4, dtype=torch.int64, device="meta"))


def test_leader():
    function = "okddip_loss"
    with refuses(function, TypeError, "leader_logits must be a torch.Tensor, got float"):
        call(function, leader_logits=0.0)
    for shape in ((4, 6), (3, 5), (4, 1, 5), (5,)):
        rule = f"leader_logits must be [B, C], [4, 5] for peer_logits [4, 3, 5], got {list(shape)}"
        with refuses(function, ValueError, rule):
            call(function, leader_logits=torch.zeros(shape))
    with refuses(function, ValueError, "peer_logits and leader_logits must be on one device, got cpu and meta"):
        call(function, leader_logits=torch.zeros(4, 5, device="meta"))


@pytest.mark.parametrize("function", ["okddip_loss", "peer_attention"])
def test_query_and_key(function):
    for name in ("query", "key"):
        with refuses(function, TypeError, f"{name} must be a torch.Tensor, got NoneType"):
            call(function, **{name: None})
    for shape in ((4, 2), (4, 2, 2), (3, 3, 2), (4, 3, 0), (4, 3, 2, 1)):
        rule = "query must be [B, P, d] with at least 1 column and the B and P of peer_logits [4, 3, 5]"
        with refuses(function, ValueError, f"{rule}, got {list(shape)}"):
            call(function, query=torch.zeros(shape))
    for shape in ((4, 3, 3), (4, 3), (4, 2, 2)):
        with refuses(function, ValueError, f"query [4, 3, 2] and key {list(shape)} must have equal shapes"):
            call(function, key=torch.zeros(shape))
    for name in ("query", "key"):
        with refuses(function, ValueError, f"peer_logits and {name} must be on one device, got cpu and meta"):
            call(function, **{name: torch.zeros(4, 3, 2, device="meta")})


def test_gate():
    function = "gated_ensemble_loss"
    with refuses(function, TypeError, "gate must be a torch.Tensor, got list"):
        call(function, gate=[0.5, 0.5])
    for shape in ((4,), (3,), (4, 2), (4, 3, 1)):
        rule = f"gate must be [B, P], [4, 3] for branch_logits [4, 3, 5], got {list(shape)}"
        with refuses(function, ValueError, rule):
            call(function, gate=torch.zeros(shape))
    with refuses(function, ValueError, "branch_logits and gate must be on one device, got cpu and meta"):
        call(function, gate=torch.zeros(4, 3, device="meta"))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_temperature(function):
    for bad in (0, -1.0, inf, nan):
        with refuses(function, ValueError, f"temperature must be finite and > 0, got {bad}"):
            call(function, temperature=bad)
    with refuses(function, ValueError, "temperature must be a number or a tensor of shape [] or [1], got [4]"):
        call(function, temperature=torch.ones(4))
    with refuses(function, TypeError, "temperature must be a number, got str"):
        call(function, temperature="3")


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("name", ["kl_weight", "target_eps"])
def test_weights(function, name):
    for bad in (-1e-7, inf, nan):
        with refuses(function, ValueError, f"{name} must be finite and >= 0, got {bad}"):
            call(function, **{name: bad})
    with refuses(function, TypeError, f"{name} must be a number, got str"):
        call(function, **{name: "1"})


@pytest.mark.parametrize("function", ["okddip_loss", "peer_attention"])
def test_mix(function):
    for bad in ("divergences", None, 0):
        with refuses(function, ValueError, f"mix must be one of 'logits', 'probs', got {bad!r}"):
            call(function, mix=bad)
