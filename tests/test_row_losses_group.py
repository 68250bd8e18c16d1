"""Statistics over a process group: two processes with half a batch each are one with the whole of it."""

import forks
import pytest
import torch
import torch.distributed as dist
from helpers import assert_same_formula, draw, labels

import kdkernels as kd

ROWS, CLASSES = 12, 7
CASES = {
    "cwtm teacher": lambda s, t, y, **o: kd.cwtm_loss(s, y, t, **o),
    "cwtm confidence": lambda s, t, y, **o: kd.cwtm_loss(s, y, confidence=t[:, 0].sigmoid(), **o),
    "cwtm as it is": lambda s, t, y, **o: kd.cwtm_loss(s, y, t, normalize=False, **o),
    "flsw": lambda s, t, y, **o: kd.dynamic_temperature_kl(s, t, y, adjust="ps", mask=y != 2, **o),
    "cwsm": lambda s, t, y, **o: kd.dynamic_temperature_kl(
        s, t, y, mode="cwsm", adjust="lsr", beta=9.0, normalize="l1", ce_weight=0.5, **o
    ),
    "const": lambda s, t, y, **o: kd.dynamic_temperature_kl(s, t, y, mode="const", **o),
}


def results(rows, group=None):
    """Loss, summed, and gradient of every case by both implementations."""
    student, teacher = (draw(ROWS, CLASSES, seed=seed, dtype=torch.float64)[rows] for seed in (0, 1))
    target = labels(ROWS, classes=CLASSES)
    target[:2] = -100  # the halves count different numbers of rows
    found = {}
    for backend in ("cpu", "reference"):
        for name, function in CASES.items():
            leaf = student.clone().requires_grad_()
            with kd.backend(backend):
                loss = function(leaf, teacher, target[rows], reduction="sum", group=group)
            found[backend, name] = (loss.detach(), *torch.autograd.grad(loss, leaf))
    return found


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    torch.save(results(rows, dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_are_one(tmp_path):
    forks.two(worker, str(tmp_path))
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole = results(slice(None))
    for case, (loss, gradient) in whole.items():
        assert_same_formula(sum(half[case][0] for half in halves), loss)
        assert_same_formula(torch.cat([half[case][1] for half in halves]), gradient)
    # Half a batch alone does something else.
    for name in ("cwtm teacher", "flsw", "cwsm"):
        alone = results(slice(ROWS // 2))["cpu", name][0]
        assert (alone - halves[0]["cpu", name][0]).abs() > 1e-3
