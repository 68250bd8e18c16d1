"""logit_rank: the op against its definition, in every layout and dtype."""

import re
from math import inf, nan

import numpy as np
import pytest
import torch
from helpers import FLOATS, draw, labels

import kdkernels as kd


def by_sorting(logits, target, dim=-1):
    order = logits.double().argsort(dim=dim, descending=True, stable=True)
    return (order == target.unsqueeze(dim)).int().argmax(dim)


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("classes", [1, 2, 7, 15, 16, 17, 100, 1001, 5003])
def test_is_the_place_in_a_stable_sort(machine, backend, classes):
    for dtype in FLOATS:
        logits = draw(9, classes, dtype=dtype, device=machine)
        target = labels(9, classes=classes, device=machine)
        target[:2] = torch.tensor([0, classes - 1])
        logits[3:] = logits[3:].round()  # ties
        logits[5] = 0
        logits[6, ::2] = -inf
        with kd.backend(machine if backend == "library" else backend):
            ranks = kd.logit_rank(logits, target)
        assert ranks.dtype is torch.int64 and torch.equal(ranks, by_sorting(logits, target))


def test_every_label(machine):
    logits = draw(1, 50, device=machine).round().expand(50, 50)
    target = torch.arange(50, device=machine)
    with kd.backend(machine):
        assert torch.equal(kd.logit_rank(logits, target), by_sorting(logits, target))


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_layouts(machine, backend):
    logits, target = draw(3, 40, 5, device=machine), labels(3, 5, classes=40, device=machine)
    expected = by_sorting(logits, target, 1)
    with kd.backend(machine if backend == "library" else backend):
        assert torch.equal(kd.logit_rank(logits, target, dim=1), expected)
        assert torch.equal(kd.logit_rank(logits.movedim(1, -1), target), expected)
        assert torch.equal(kd.logit_rank(logits.repeat_interleave(2, 2)[..., ::2], target, dim=-2), expected)
        assert torch.equal(kd.logit_rank(logits[0, :, 0], target[0, 0]), expected[0, 0])
        assert kd.logit_rank(logits[:0], target[:0], dim=1).shape == (0, 5)


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_a_broken_row_is_never_correct(machine, backend):
    logits = torch.zeros(4, 40, device=machine)
    target = torch.tensor([0, 39, 20, 3], device=machine)
    logits[torch.arange(4), target] = 5
    logits[1, [2, 38]] = nan  # beside the label and far from it
    logits[2, 20] = nan
    logits[3, 3] = inf
    with kd.backend(machine if backend == "library" else backend):
        assert kd.logit_rank(logits, target).tolist() == [0, 2, 39, 0]


def test_emulated():
    """The CUDA kernel, in a thread per row, several rows per warp, and a block per row."""
    import emulated

    rng = np.random.default_rng(0)
    for classes, sm in ((1, 90), (100, 90), (1017, 90), (9000, 75)):
        target = np.array([0, classes - 1, classes // 2, classes])
        for dtype in (np.float32, np.float16, np.float64):
            logits = rng.normal(size=(4, classes)).round(1).astype(dtype)
            emulated.module().set_seed(classes)
            ours = emulated.module().logit_rank(logits, target, sm=sm)
            expected = by_sorting(torch.tensor(logits[:3]), torch.tensor(target[:3]))
            np.testing.assert_array_equal(ours, [*expected, -1])  # a label that is none


def test_torch(device):
    logits, target = draw(4, 6, 10, device=device), labels(4, 6, classes=10, device=device)
    with kd.backend(device):
        expected = kd.logit_rank(logits, target)
        compiled = torch.compile(kd.logit_rank, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(logits, target), expected)
        assert torch.equal(torch.vmap(kd.logit_rank)(logits, target), expected)
        assert not kd.logit_rank(logits.requires_grad_(), target).requires_grad


def refuses(error, message):
    return pytest.raises(error, match="^logit_rank: " + re.escape(message) + "$")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend):
    logits, target = torch.zeros(2, 5), torch.tensor([0, 4])
    with kd.backend(backend):
        for bad in (5, -1, -100, -(2**63)):
            with refuses(ValueError, f"target contains {bad}, valid labels are 0..4"):
                kd.logit_rank(logits, torch.tensor([0, bad]))
        rule = "logits must be float32, float16, bfloat16 or float64, got int64; convert it with logits.float()"
        with refuses(TypeError, rule):
            kd.logit_rank(logits.long(), target)
        rule = "target must hold integer class labels, got float32; use target.argmax(dim) of probabilities"
        with refuses(TypeError, rule):
            kd.logit_rank(logits, logits)
        with refuses(ValueError, "target must have one value per row, [2] for logits [2, 5] with dim=1, got [1]"):
            kd.logit_rank(logits, target[:1])
        with refuses(ValueError, "at least 1 class is needed, got logits [2, 0] with dim=-1"):
            kd.logit_rank(logits[:, :0], target)
