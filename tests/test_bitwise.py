"""The bits of a result depend on its row alone: not on where in which batch it stands, nor on the number of threads."""

import emulated
import numpy as np
import pytest
import torch
from helpers import FLOATS, draw, labels, threads
from problems import plain_problem

import kdkernels as kd


def row_losses(student, teacher, target):
    """Name -> loss per row of some of the rows, in their order."""
    order = draw(*student.shape, seed=2).argsort(-1).to(student.device)
    confidence = torch.linspace(0.1, 1, len(student), device=student.device, dtype=student.dtype)
    temperature = torch.linspace(0.5, 8, len(student), device=student.device, dtype=student.dtype)
    none = {"reduction": "none"}

    def soft(divergence):
        return lambda s, rows: kd.softened_kl(
            s, teacher[rows], divergence=divergence, temperature=temperature[rows], **none
        )

    losses = {divergence: soft(divergence) for divergence in ("forward", "reverse", "jsd", "cross_entropy")}
    losses |= {
        "kd_loss": lambda s, rows: kd.kd_loss(s, teacher[rows], target[rows], **none),
        "dkpp_loss": lambda s, rows: kd.dkpp_loss(s, teacher[rows], permutation=order[rows], **none),
        "dynamic_temperature_kl": lambda s, rows: kd.dynamic_temperature_kl(
            s, teacher[rows], target[rows], mode="const", adjust="ps", **none
        ),
        "label_smoothing_loss": lambda s, rows: kd.label_smoothing_loss(s, target[rows], **none),
        "virtual_teacher_loss": lambda s, rows: kd.virtual_teacher_loss(s, target[rows], **none),
        "cwtm_loss": lambda s, rows: kd.cwtm_loss(s, target[rows], confidence=confidence[rows], normalise=False, **none),
    }
    return losses


def loss_and_gradient(device, call, tensor, rows):
    leaf = tensor[rows].detach().requires_grad_()
    with kd.backend(device):
        loss = call(leaf, rows)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def assert_same_in_any_batch(device, call, tensor):
    """Alone, in other company, in another order; with one thread and with two."""
    count = len(tensor)
    everything = torch.arange(count, device=device)
    whole = loss_and_gradient(device, call, tensor, everything)
    for rows in (everything[:1], everything[count // 2 : count // 2 + 1], everything[3::4], everything.flip(0)):
        for part, expected in zip(loss_and_gradient(device, call, tensor, rows), whole):
            assert torch.equal(part, expected[rows])
    with threads(2):
        assert all(map(torch.equal, loss_and_gradient(device, call, tensor, everything), whole))


@pytest.mark.parametrize("classes", [2, 10, 100, 5003])
def test_a_row_has_the_same_bits_in_any_batch(machine, classes):
    for dtype in FLOATS:
        student, teacher = (draw(33, classes, seed=seed, dtype=dtype, device=machine) for seed in range(2))
        for call in row_losses(student, teacher, labels(33, classes=classes, device=machine)).values():
            assert_same_in_any_batch(machine, call, student)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_query_and_an_embedding_have_the_same_bits_in_any_batch(machine, dtype):
    """Beside the same keys, and with a given normalizer."""
    for queries, keys, width in ((37, 29, 16), (130, 300, 128)):
        query, key, teacher_query, teacher_key = (
            draw(rows, width, seed=seed, dtype=dtype, device=machine)
            for seed, rows in enumerate((queries, keys, queries, keys))
        )
        positive, index = labels(queries, classes=keys, device=machine), labels(queries, 600, classes=keys, device=machine)
        calls = (
            lambda q, rows: kd.info_nce(q, key, positive[rows], temperature=0.1, reduction="none"),
            lambda q, rows: kd.similarity_kl(q, key, teacher_query[rows], teacher_key, reduction="none"),
            lambda q, rows: kd.memory_bank_nce(
                q, key, index[rows], temperature=20.0, normalizer=100.0, reduction="none"
            ),
        )
        for call in calls if machine == "cpu" else calls[2:]:
            assert_same_in_any_batch(machine, call, query)


@pytest.mark.parametrize("classes", [10, 1001])
def test_a_sample_of_peers_has_the_same_bits_in_any_batch(machine, classes):
    """The mean over a batch of a power of two samples scales a gradient without rounding it."""
    for dtype in FLOATS:
        if dtype == torch.float16:
            continue  # a smaller share of a number near the smallest has fewer digits
        peers, query, key = (
            draw(8, 3, size, seed=seed, scale=scale, dtype=dtype, device=machine)
            for seed, (size, scale) in enumerate(((classes, 3.0), (20, 0.5), (20, 0.5)))
        )
        leader, gate = draw(8, classes, seed=3, device=machine), draw(8, 3, seed=4, device=machine)
        target = labels(8, classes=classes, device=machine)
        calls = (
            lambda p, rows: len(rows) * kd.okddip_loss(p, leader[rows], query[rows], key[rows], target[rows]),
            lambda p, rows: len(rows) * kd.gated_ensemble_loss(gate[rows], p, target[rows]),
            lambda p, rows: len(rows) * kd.leave_one_out_loss(p, target[rows]),
        )
        every = torch.arange(8, device=machine)
        for call in calls:
            _, whole = loss_and_gradient(machine, call, peers, every)
            for rows in (every[:4], every[5:6], every[[6, 1]]):
                assert torch.equal(loss_and_gradient(machine, call, peers, rows)[1], whole[rows])
            with threads(2):
                assert torch.equal(loss_and_gradient(machine, call, peers, every)[1], whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 1001, 4096, 5003, 9001])
def test_an_emulated_cuda_row_has_the_same_bits_in_any_batch(classes, dtype):
    """Held in registers, staged in a block and in a cluster; rows that begin at 16-byte boundaries and others; in every order
    of threads."""
    solve = emulated.module().softened_kl
    student, teacher = (logits[..., 0] for logits in plain_problem(classes, rows=5, dtype=dtype))
    target = np.arange(5) % classes
    how = {"reduction": 0, "temperature": 4.0, "ce_weight": 0.5}
    emulated.module().set_seed(0)
    whole = solve(student, teacher, target=target, **how)
    for row in range(5):
        emulated.module().set_seed(row + 1)
        one = slice(row, row + 1)
        alone = solve(student[one].copy(), teacher[one].copy(), target=target[one], **how)
        assert alone["loss"][0] == whole["loss"][row]
        np.testing.assert_array_equal(alone["grad_student"][0], whole["grad_student"][row])
