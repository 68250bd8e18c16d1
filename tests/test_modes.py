"""Autocast, inference_mode, default devices and dtypes: what a caller has switched on changes no result."""

import all_losses
import pytest
import torch
from all_losses import ALL, BY_ROWS, is_constant, leaves, tensors
from helpers import draw, labels

import kdkernels as kd

BACKENDS = ["cpu", "reference"]


def everything(name, given, **options):
    """Loss, gradients, the same of a second backward, and the gradients of a gradient penalty."""
    function = ALL[name]
    learned = [x for x in given if x.requires_grad]
    loss = function(*given, **options)
    upstream = torch.ones_like(loss) / 3
    first = torch.autograd.grad(loss, learned, upstream, retain_graph=True)
    again = torch.autograd.grad(loss, learned, upstream, create_graph=True)
    penalty = sum(g.square().sum() for g in again)
    second = torch.autograd.grad(penalty, learned, allow_unused=True) if penalty.requires_grad else ()
    return [loss.detach(), *first, *[g.detach() for g in again], *[s for s in second if s is not None]]


def same(ours, expected):
    """Bit for bit; no result is NaN."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL)
def test_autocast(name, backend):
    with kd.backend(backend):
        expected = everything(name, leaves(ALL[name]))
        with torch.autocast("cpu", torch.bfloat16):
            same(everything(name, leaves(ALL[name])), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_of_ranks(backend):
    query, key, positive = draw(64, 16), draw(50, 16, seed=1), labels(64, classes=50)
    with kd.backend(backend):
        expected = kd.similarity_rank(query, key, positive), kd.logit_rank(query, positive % 16)
        with torch.autocast("cpu", torch.bfloat16):
            ours = kd.similarity_rank(query, key, positive), kd.logit_rank(query, positive % 16)
    assert all(map(torch.equal, ours, expected))


def test_autocast_of_lists():
    """Autocast refuses to stack tensors of a half dtype that is not its own."""
    peers, y = [draw(6, 5, seed=seed, dtype=torch.float16) for seed in range(3)], labels(6, classes=5)
    for function in (kd.leave_one_out_loss, kd.reference.leave_one_out_loss):
        expected = function(peers, y)
        with torch.autocast("cpu", torch.bfloat16):
            same(function(peers, y), expected)


@pytest.fixture
def held_from_inference(monkeypatch):
    """The integers and masks of all_losses.py, made in inference_mode."""
    with torch.inference_mode():
        for name in ("INDEX", "LABELS", "MASK", "ORDER", "POSITIVE", "TARGET", "TWINS"):
            monkeypatch.setattr(all_losses, name, getattr(all_losses, name).clone())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL)
def test_inference_tensors(name, backend, held_from_inference):
    """One argument after the other learns, and all others come from inference_mode."""
    function = ALL[name]
    reductions = ["none", "batchmean"] if function in BY_ROWS else [None]
    for reduction in reductions:
        options = {"reduction": reduction} if reduction else {}
        for at, each in enumerate(tensors(function)):
            if is_constant(function, each):
                continue
            results = []
            for from_inference in (False, True):
                with torch.inference_mode(from_inference):
                    given = [*tensors(function).values()]
                given[at] = given[at].clone().requires_grad_()
                with kd.backend(backend):
                    results.append(everything(name, given, **options))
            same(*results)


@pytest.mark.parametrize("name", ["hinton", "contrast", "led"])
def test_inference_tensors_in_transforms(name):
    function = ALL[name]
    with torch.inference_mode():
        first, *others = tensors(function).values()
    first = first.clone()
    ours = torch.func.grad(function)(first, *others)
    torch.testing.assert_close(ours, everything(name, [first.requires_grad_(), *map(torch.clone, others)])[1] * 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_tensors_of_a_module_with_weights(backend):
    student, teacher, index = draw(8, 10), draw(8, 10, seed=1), torch.arange(8)
    crd, results = kd.nn.CRDLoss(10, 10, 20, negatives=5).eval(), []
    contrast = labels(8, 6, classes=20)
    for from_inference in (False, True):
        with torch.inference_mode(from_inference):
            given = teacher.clone(), index.clone(), contrast.clone()
        with kd.backend(backend):
            loss = crd(student, *given)
            results.append([loss.detach(), *torch.autograd.grad(loss, [*crd.parameters()])])
    same(*results)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL)
def test_default_device_and_dtype(name, backend):
    given = leaves(ALL[name])
    with kd.backend(backend):
        expected = everything(name, given)
        try:
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"):
                same(everything(name, given), expected)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_are_made_in_host_memory(backend):
    student, teacher, index, rank = draw(8, 10), draw(8, 10, seed=1), torch.arange(8), labels(8, classes=3)
    crd = kd.nn.CRDLoss(10, 10, 20, negatives=5)

    def results():
        torch.manual_seed(0)
        return kd.dkpp_loss(student, teacher), crd.eval()(student, teacher, index), kd.select_trusted_rows(rank, 0.5)

    with kd.backend(backend):
        expected = results()
        with torch.device("meta"):
            same(results(), expected)
