"""Keys of all processes: two with half of the rows each are, on average, one with all of them."""

import re

import forks
import pytest
import torch
import torch.distributed as dist
from helpers import assert_same_formula, draw, labels

import kdkernels as kd

DOUBLE = torch.float64
ROWS, WIDTH = 8, 5  # per process
MASK = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=torch.bool)  # one row less in each half
BIAS = draw(2 * ROWS, 2 * ROWS, seed=9)
LABELS = torch.cat([labels(ROWS, classes=3, seed=seed) for seed in (0, 1)])
POSITIVE = torch.cat([labels(ROWS, classes=ROWS, seed=seed) for seed in (2, 3)])  # within the process


def cases(rows, group):
    """Name -> loss of (query, key, temperature); `rows`: those of this process, or all."""
    mask, positive = MASK[rows], POSITIVE[rows]
    if group is None:
        positive = positive + torch.arange(2).repeat_interleave(ROWS) * ROWS
    o = {"group": group}
    # The losses of both processes are to be added then, and here their mean is taken.
    denominator = 10.0 if group else 20.0
    spoilt = torch.zeros(len(mask), 1).masked_fill(~mask.unsqueeze(1), torch.nan)
    return {
        "diagonal": lambda q, k, t: kd.info_nce(q, k, temperature=t, **o),
        "symmetric": lambda q, k, t: kd.info_nce(q, k, symmetric=True, temperature=t, mask=mask, **o),
        "spoilt": lambda q, k, t: kd.info_nce(q + spoilt, k, symmetric=True, temperature=t, mask=mask, **o),
        "positives": lambda q, k, t: kd.info_nce(q, k, positive, temperature=t, logit_bias=BIAS[rows], **o),
        "both": lambda q, k, t: kd.info_nce(q, k, positive, temperature=t, symmetric=True, mask=mask, **o),
        "elements": lambda q, k, t: kd.info_nce(q, k, positive, symmetric=True, reduction="elementmean", **o),
        "labels": lambda q, k, t: kd.supervised_contrastive(q, LABELS[rows], mask=mask, **o),
        "divided": lambda q, k, t: kd.info_nce(q, k, positive, symmetric=True, denominator=denominator, mask=mask, **o),
        "elements divided": lambda q, k, t: kd.info_nce(
            q, k, symmetric=True, reduction="elementmean", denominator=denominator, **o
        ),
        "labels divided": lambda q, k, t: kd.supervised_contrastive(
            q, LABELS[rows], mask=mask, reduction="elementmean", denominator=denominator, **o
        ),
        "images": lambda q, k, t: kd.supervised_contrastive(q, torch.arange(2 * ROWS)[rows] % 8, normalize=False, **o),
    }


def results(rows, group=None):
    """Loss and gradients of every case by both implementations; and of one case the second derivative."""
    found = {}
    for backend in ("cpu", "reference"):
        for name, function in cases(rows, group).items():
            leaves = [draw(2 * ROWS, WIDTH, seed=seed, scale=1.0, dtype=DOUBLE)[rows].requires_grad_() for seed in (0, 1)]
            temperature = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
            with kd.backend(backend):
                loss = function(*leaves, temperature)
                inputs = (*leaves, temperature)
                first = torch.autograd.grad(loss, inputs, allow_unused=True, create_graph=name == "symmetric")
                found[backend, name] = (loss.detach(), *first)
                if name == "symmetric":
                    penalty = sum(gradient.square().sum() for gradient in first[:2])
                    found[backend, "second"] = (penalty.detach(), *torch.autograd.grad(penalty, inputs))
                    directions = [draw(2 * ROWS, WIDTH, seed=seed, dtype=DOUBLE)[rows] for seed in (7, 8)]
                    primals = tuple(x.detach() for x in inputs)
                    found[backend, "forward"] = torch.func.jvp(function, primals, (*directions, torch.ones((), dtype=DOUBLE)))
    return found


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    rows, world = slice(rank * ROWS, (rank + 1) * ROWS), dist.group.WORLD
    found = results(rows, world)
    messages = []
    query, longer = draw(3, WIDTH), draw(3 + rank, WIDTH)
    other_dtype = query.to((torch.float32, torch.float64)[rank])
    learned_by_one = query.clone().requires_grad_(rank == 0)
    for loss in (
        lambda: kd.info_nce(longer, longer, group=world),
        lambda: kd.supervised_contrastive(longer, LABELS[: len(longer)], group=world),
        lambda: kd.info_nce(query, query, logit_bias=torch.zeros(()), symmetric=True, group=world),
        lambda: kd.info_nce(other_dtype, other_dtype, group=world),
        lambda: kd.supervised_contrastive(learned_by_one, LABELS[:3], group=world),
        lambda: kd.info_nce(query, query, symmetric=rank == 0, group=world),
        lambda: kd.info_nce(query, query, symmetric=True, mask=MASK[:3] if rank == 0 else None, group=world),
    ):
        try:
            loss()
        except (ValueError, TypeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    for backend in ("cpu", "reference"):  # a number is exchanged whatever the dtypes
        with kd.backend(backend):
            index = torch.tensor([[0, 1 + rank]] * 3)
            _, parts = kd.memory_bank_nce(other_dtype, query, index, temperature=5.0, return_parts=True, group=world)
            alone = kd.memory_bank_nce(other_dtype, query, index, temperature=5.0, return_parts=True)[1]
            found[backend, "normalizer"] = parts["normalizer"], alone["normalizer"]
    torch.save((found, messages), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_are_one(tmp_path):
    forks.two(worker, str(tmp_path))
    (one, messages), (other, same_messages) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for backend in ("cpu", "reference"):
        (ours, first), (theirs, second) = (found.pop((backend, "normalizer")) for found in (one, other))
        assert (ours.dtype, theirs.dtype) == (torch.float32, torch.float64)
        half_unit = torch.finfo(torch.float32).eps / 2
        assert (theirs - (first.double() + second) / 2).abs() <= half_unit * theirs  # the number of one was sent in float32
        assert (ours - theirs).abs() <= 2 * half_unit * theirs
    wholes = results(slice(None))
    for backend in ("cpu", "reference"):
        whole, *halves = (found.pop((backend, "forward")) for found in (wholes, one, other))
        assert_same_formula([sum(each) / 2 for each in zip(*halves)], [*whole])
    for case, whole in wholes.items():
        loss, by_query, by_key, by_temperature = whole
        halves = list(zip(one[case], other[case]))
        # What DDP does with gradients: their mean. Each row is one process's alone. The penalty is made of gradients
        # that are twice those of one process.
        share = 4 if case[1] == "second" else 2
        assert_same_formula(sum(halves[0]) / share, loss)
        assert_same_formula(torch.cat(halves[1]) / share, by_query)
        if by_key is not None:
            assert_same_formula(torch.cat(halves[2]) / share, by_key)
        if by_temperature is not None:
            assert_same_formula(sum(halves[3]) / share, by_temperature)
    alone = kd.info_nce(*[draw(2 * ROWS, WIDTH, seed=seed, scale=1.0)[:ROWS] for seed in (0, 1)], temperature=0.5)
    assert (alone - one["reference", "diagonal"][0]).abs() > 1e-2  # half of the keys

    assert messages == same_messages
    rule = "must have one shape on all processes of the group, got [[3, 5], [4, 5]]"
    assert messages[:2] == [f"ValueError: info_nce: key {rule}", f"ValueError: supervised_contrastive: features {rule}"]
    assert re.fullmatch("ValueError: info_nce: logit_bias with symmetric and group is not supported.*", messages[2])
    assert messages[3:] == [
        "TypeError: info_nce: key must have one dtype on all processes of the group, got float32, float64; "
        "convert it before the loss",
        "ValueError: supervised_contrastive: features must require grad on all processes of the group or on none, "
        "got [True, False]",
        "ValueError: info_nce: symmetric must be given on all processes of the group or on none, got [True, False]",
        "ValueError: info_nce: mask must be given on all processes of the group or on none, got [True, False]",
    ]
