"""Keys of all processes: two with half of the rows each are, on average, one with all of them."""

import re

import pytest
import torch
import torch.distributed as dist
from helpers import draw, labels

import kdkernels as kd

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
    spoilt = torch.zeros(len(mask), 1).masked_fill(~mask.unsqueeze(1), torch.nan)
    return {
        "diagonal": lambda q, k, t: kd.info_nce(q, k, temperature=t, **o),
        "symmetric": lambda q, k, t: kd.info_nce(q, k, symmetric=True, temperature=t, mask=mask, **o),
        "spoilt": lambda q, k, t: kd.info_nce(q + spoilt, k, symmetric=True, temperature=t, mask=mask, **o),
        "positives": lambda q, k, t: kd.info_nce(q, k, positive, temperature=t, logit_bias=BIAS[rows], **o),
        "both": lambda q, k, t: kd.info_nce(q, k, positive, temperature=t, symmetric=True, mask=mask, **o),
        "elements": lambda q, k, t: kd.info_nce(q, k, positive, symmetric=True, reduction="elementmean", **o),
        "labels": lambda q, k, t: kd.supervised_contrastive(q, LABELS[rows], mask=mask, **o),
        "images": lambda q, k, t: kd.supervised_contrastive(q, torch.arange(2 * ROWS)[rows] % 8, normalize=False, **o),
    }


def results(rows, group=None):
    """Loss and gradients of every case by both implementations; and of one case the second derivative."""
    found = {}
    for backend in ("cpu", "reference"):
        for name, function in cases(rows, group).items():
            leaves = [draw(2 * ROWS, WIDTH, seed=seed, scale=1.0)[rows].requires_grad_() for seed in (0, 1)]
            temperature = torch.tensor(0.5, requires_grad=True)
            with kd.backend(backend):
                loss = function(*leaves, temperature)
                inputs = (*leaves, temperature)
                first = torch.autograd.grad(loss, inputs, allow_unused=True, create_graph=name == "symmetric")
                found[backend, name] = (loss.detach(), *first)
                if name == "symmetric":
                    penalty = sum(gradient.square().sum() for gradient in first[:2])
                    found[backend, "second"] = (penalty.detach(), *torch.autograd.grad(penalty, inputs))
    return found


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    rows, world = slice(rank * ROWS, (rank + 1) * ROWS), dist.group.WORLD
    found = results(rows, world)
    messages = []
    for loss in (
        lambda q: kd.info_nce(q, q, group=world),
        lambda q: kd.supervised_contrastive(q, LABELS[: len(q)], group=world),
    ):
        try:
            loss(draw(3 + rank, WIDTH))
        except ValueError as error:
            messages.append(str(error))
    try:
        kd.info_nce(draw(3, WIDTH), draw(3, WIDTH), logit_bias=torch.zeros(()), symmetric=True, group=world)
    except ValueError as error:
        messages.append(str(error))
    torch.save((found, messages), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    (one, messages), (other, same_messages) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for case, whole in results(slice(None)).items():
        loss, by_query, by_key, by_temperature = whole
        halves = list(zip(one[case], other[case]))
        # What DDP does with gradients: their mean. Each row is one process's alone. The penalty is made of gradients
        # that are twice those of one process.
        share = 4 if case[1] == "second" else 2
        torch.testing.assert_close(sum(halves[0]) / share, loss)
        torch.testing.assert_close(torch.cat(halves[1]) / share, by_query)
        if by_key is not None:
            torch.testing.assert_close(torch.cat(halves[2]) / share, by_key)
        if by_temperature is not None:
            torch.testing.assert_close(sum(halves[3]) / share, by_temperature)
    alone = kd.info_nce(*[draw(2 * ROWS, WIDTH, seed=seed, scale=1.0)[:ROWS] for seed in (0, 1)], temperature=0.5)
    assert (alone - one["reference", "diagonal"][0]).abs() > 1e-2  # half of the keys

    assert messages == same_messages
    rule = "must have one shape on all processes of the group, got [[3, 5], [4, 5]]"
    assert messages[:2] == [f"info_nce: key {rule}", f"supervised_contrastive: features {rule}"]
    assert re.fullmatch("info_nce: logit_bias with symmetric and group is not supported.*", messages[2])
