"""The bits of a result depend on its row alone: not on where in which batch it stands, nor on the number of threads."""

import functools

import emulated
import numpy as np
import pytest
import torch
from helpers import FLOATS, draw, labels, threads
from row_problems import numbered, plain_problem

import kdkernels as kd

DIVERGENCES = ("forward", "reverse", "jsd", "tvd", "cross_entropy")
NONE = {"reduction": "none"}


def row_losses(student, teacher, target):
    """(the loss per row of some of the rows, in their order; the tensors it learns, of which it is given those rows)."""
    order = draw(*student.shape, seed=2).argsort(-1).to(student.device)
    half = student.shape[-1] // 2
    confidence = torch.linspace(0.1, 1, len(student), device=student.device, dtype=student.dtype)
    temperature = torch.linspace(0.5, 8, len(student), device=student.device, dtype=student.dtype)
    probabilities = (teacher.double() / 4).softmax(-1).to(teacher.dtype)  # none of them 0 in half precision

    def soft(divergence, **how):
        return lambda rows, s, t: kd.softened_kl(s, t, divergence=divergence, temperature=temperature[rows], **how, **NONE)

    taught = [soft(divergence) for divergence in DIVERGENCES]
    taught += [soft(divergence, target_eps=1e-3) for divergence in DIVERGENCES]
    taught += [soft(divergence, standardize=True) for divergence in ("forward", "jsd")]
    taught += [soft(divergence, skew=0.1) for divergence in ("forward", "reverse")]
    taught += [soft("forward", shared_classes=-(-student.shape[-1] // 2))]
    taught.append(lambda rows, s, t: kd.kd_loss(s, t, target[rows], label_smoothing=0.1, **NONE))
    taught.append(lambda rows, s, t: kd.kd_loss(s, t, target[rows], divergence="reverse", standardize=True, **NONE))
    yield from ((call, (student, teacher)) for call in taught)
    yield from ((soft(divergence, teacher_kind="probs"), (student, probabilities)) for divergence in DIVERGENCES)
    yield from ((soft(divergence, teacher_kind="log_probs"), (student, probabilities.log())) for divergence in DIVERGENCES)
    alone = [
        lambda rows, s: kd.dkpp_loss(s, teacher[rows], permutation=order[rows], **NONE),
        lambda rows, s: kd.dynamic_temperature_kl(s, teacher[rows], target[rows], mode="const", adjust="ps", **NONE),
        lambda rows, s: kd.dynamic_temperature_kl(s, teacher[rows], target[rows], mode="const", adjust="lsr", **NONE),
        lambda rows, s: kd.label_smoothing_loss(s, target[rows], **NONE),
        lambda rows, s: kd.virtual_teacher_loss(s, target[rows], **NONE),
        lambda rows, s: kd.class_range_cross_entropy(s, half + target[rows] // 2, half, s.shape[-1], **NONE),
        lambda rows, s: kd.cwtm_loss(s, target[rows], confidence=confidence[rows], normalize=False, **NONE),
    ]
    yield from ((call, (student,)) for call in alone)


def query_losses(queries, keys, width, dtype, device):
    """As row_losses, beside the same keys and with a given normalizer."""
    query, key, teacher_query, teacher_key = (
        draw(rows, width, seed=seed, dtype=dtype, device=device) for seed, rows in enumerate((queries, keys, queries, keys))
    )
    positive, index = labels(queries, classes=keys, device=device), labels(queries, 600, classes=keys, device=device)
    calls = [
        lambda rows, q: kd.memory_bank_nce(q, key, index[rows], temperature=20.0, normalizer=100.0, **NONE),
        lambda rows, q: kd.info_nce(q, key, positive[rows], temperature=0.1, **NONE),
        lambda rows, q: kd.similarity_kl(q, key, teacher_query[rows], teacher_key, **NONE),
    ]
    yield from ((call, (query,)) for call in (calls if device == "cpu" else calls[:1]))


def batch_losses(student, teacher, target):
    """(a loss of the whole batch, whose rows or features do depend on each other; the tensors it learns)."""
    index = labels(len(student), 600, classes=len(student), device=student.device)
    alone = [
        lambda rows, s: kd.cwtm_loss(s, target, teacher),
        lambda rows, s: kd.dynamic_temperature_kl(s, teacher, target, mode="flsw", adjust="ps"),
        lambda rows, s: kd.supervised_contrastive(s, target),
        lambda rows, s: kd.memory_bank_nce(s / 30, teacher / 30, index),
    ]
    yield from ((call, (student,)) for call in alone)
    both = [
        lambda rows, s, t: kd.softened_kl(s, t),
        lambda rows, s, t: kd.kd_loss(s, t, target, reduction="sum"),
        lambda rows, s, t: kd.info_nce(s, t, symmetric=True),
        lambda rows, s, t: kd.similarity_kl(s, t, teacher, student),
    ]
    yield from ((call, (student, teacher)) for call in both)


def peer_losses(samples, classes, dtype, device):
    """As row_losses, but summed over the batch."""
    peers, query, key = (
        draw(samples, 3, size, seed=seed, scale=scale, dtype=dtype, device=device)
        for seed, (size, scale) in enumerate(((classes, 3.0), (20, 0.5), (20, 0.5)))
    )
    leader = draw(samples, classes, seed=3, dtype=dtype, device=device)
    gate = draw(samples, 3, seed=4, dtype=dtype, device=device).softmax(-1)
    target = labels(samples, classes=classes, device=device)

    def okddip(mix):
        return lambda rows, p, x, q, k: len(rows) * kd.okddip_loss(p, x, q, k, target[rows], mix=mix)

    yield from ((okddip(mix), (peers, leader, query, key)) for mix in ("logits", "probs"))
    yield lambda rows, p, g: len(rows) * kd.gated_ensemble_loss(g, p, target[rows]), (peers, gate)
    yield lambda rows, p: len(rows) * kd.leave_one_out_loss(p, target[rows]), (peers,)
    yield lambda rows, p: len(rows) * kd.leave_one_out_loss(p, target[rows], pairwise=True), (peers,)


def mixtures(samples, classes, dtype, device):
    """As row_losses, of results that are no losses: weighed, lest the gradients of probabilities be 0."""
    sizes = (classes, 20, 20)
    peers, query, key = (
        draw(samples, 3, size, seed=seed, scale=0.5, dtype=dtype, device=device) for seed, size in enumerate(sizes)
    )
    above = draw(classes, seed=5, dtype=dtype, device=device)
    yield lambda rows, p, q, k: kd.peer_attention(q, k, p) * above, (peers, query, key)
    yield lambda rows, p, q, k: kd.peer_attention(q, k, p, mix="probs") * above, (peers, query, key)
    yield lambda rows, p: kd.mean_probabilities(p, temperature=3.0) * above, (peers,)


def results(device, call, tensors, rows):
    """The loss of these rows, and the same rows of the gradient of each of the tensors."""
    leaves = [tensor[rows].detach().requires_grad_() for tensor in tensors]
    with kd.backend(device):
        loss = call(rows, *leaves)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def assert_same_in_any_batch(device, call, tensors):
    """Alone, in other company, in another order."""
    count = len(tensors[0])
    everything = torch.arange(count, device=device)
    whole = results(device, call, tensors, everything)
    for rows in (everything[:1], everything[count // 2 : count // 2 + 1], everything[3::4], everything.flip(0)):
        for part, expected in zip(results(device, call, tensors, rows), whole):
            assert torch.equal(part, expected[rows])


def assert_same_on_any_threads(device, call, tensors):
    rows = torch.arange(len(tensors[0]), device=device)
    with threads(1):
        whole = results(device, call, tensors, rows)
    for count in (2, 3):
        with threads(count):
            assert all(map(torch.equal, results(device, call, tensors, rows), whole))


def pair(*shape, dtype, device):
    return [draw(*shape, seed=seed, dtype=dtype, device=device) for seed in range(2)]


@pytest.mark.parametrize("classes", [2, 10, 100, 5003])
def test_a_row_has_the_same_bits_in_any_batch(machine, classes):
    for dtype in FLOATS:
        student, teacher = pair(33, classes, dtype=dtype, device=machine)
        for call, tensors in row_losses(student, teacher, labels(33, classes=classes, device=machine)):
            assert_same_in_any_batch(machine, call, tensors)


@pytest.mark.parametrize("classes", [10, 1001])
def test_a_row_with_its_classes_apart_has_the_same_bits_in_any_batch(machine, classes):
    """Images: a few of such rows are read together."""
    target = labels(33, 3, classes=classes, device=machine)
    for dtype in FLOATS:
        images = pair(33, classes, 3, dtype=dtype, device=machine)
        calls = [functools.partial(soft_images, divergence=divergence) for divergence in DIVERGENCES]
        calls.append(lambda rows, s, t: kd.kd_loss(s, t, target[rows], dim=1, **NONE))
        for call in calls:
            assert_same_in_any_batch(machine, call, images)


def soft_images(rows, student, teacher, divergence):
    return kd.softened_kl(student, teacher, divergence=divergence, temperature=3.0, dim=1, **NONE)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_query_and_an_embedding_have_the_same_bits_in_any_batch(machine, dtype):
    for size in ((37, 29, 16), (130, 300, 128)):
        for call, tensors in query_losses(*size, dtype, machine):
            assert_same_in_any_batch(machine, call, tensors)


@pytest.mark.parametrize("classes", [10, 1001])
def test_a_sample_of_peers_has_the_same_bits_in_any_batch(machine, classes):
    """The mean over a batch of a power of two samples scales a gradient without rounding it."""
    for dtype in FLOATS:
        if dtype == torch.float16:
            continue  # a smaller share of a number near the smallest has fewer digits
        every = torch.arange(8, device=machine)
        for call, tensors in peer_losses(8, classes, dtype, machine):
            _, *whole = results(machine, call, tensors, every)
            for rows in (every[:4], every[5:6], every[[6, 1]]):
                for part, expected in zip(results(machine, call, tensors, rows)[1:], whole):
                    assert torch.equal(part, expected[rows])


@pytest.mark.parametrize("classes", [10, 1001])
def test_a_mixture_of_peers_has_the_same_bits_in_any_batch(machine, classes):
    for dtype in FLOATS:
        for call, tensors in mixtures(9, classes, dtype, machine):
            assert_same_in_any_batch(machine, call, tensors)


def test_any_number_of_threads_has_the_same_bits(machine):
    """Of problems that are shared out: three threads have more each than what one is worth waking for."""
    for rows, classes, dtype in ((7000, 10, torch.bfloat16), (70, 1001, torch.float32)):
        student, teacher = pair(rows, classes, dtype=dtype, device=machine)
        for call, tensors in row_losses(student, teacher, labels(rows, classes=classes, device=machine)):
            assert_same_on_any_threads(machine, call, tensors)
    student, teacher = pair(600, 128, dtype=torch.float32, device=machine)
    for call, tensors in batch_losses(student, teacher, labels(600, classes=100, device=machine)):
        assert_same_on_any_threads(machine, call, tensors)
    for problem in (peer_losses, mixtures):
        for call, tensors in problem(33, 1001, torch.bfloat16, machine):
            assert_same_on_any_threads(machine, call, tensors)


def assert_same_rows_emulated(student, teacher, options):
    """Those of a batch of five and each of them alone, in every order of threads."""
    solve, inner = emulated.module().row_loss, student[0, 0].size
    target = np.arange(5 * inner).reshape(5, inner) % student.shape[1]
    emulated.module().set_seed(0)
    whole = solve(student, teacher, target=target.reshape(-1), dim=1, **options)
    for row in range(5):
        emulated.module().set_seed(row + 1)
        one = slice(row, row + 1)
        alone = solve(student[one].copy(), teacher[one].copy(), target=target[row], dim=1, **options)
        np.testing.assert_array_equal(alone["loss"], whole["loss"].reshape(5, inner)[row])
        for name in ("grad_student", "grad_teacher"):
            if whole[name] is not None:
                np.testing.assert_array_equal(alone[name][0], whole[name][row])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 1001, 4096, 5003, 9001])
def test_an_emulated_cuda_row_has_the_same_bits_in_any_batch(classes, dtype):
    """Held in registers, staged in a block and in a cluster; rows that begin at 16-byte boundaries and others."""
    student, teacher = (logits[..., 0] for logits in plain_problem(classes, rows=5, dtype=dtype))
    assert_same_rows_emulated(student, teacher, {"reduction": 0, "temperature": 4.0, "ce_weight": 0.5})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("classes", [10, 1001, 5003])
def test_an_emulated_cuda_row_and_its_teacher_have_the_same_bits_in_any_batch(classes, divergence, dtype):
    student, teacher = (logits[..., 0] for logits in plain_problem(classes, rows=5, dtype=dtype))
    how = {"reduction": "none", "divergence": divergence, "temperature": 4.0, "target_eps": 1e-3}
    assert_same_rows_emulated(student, teacher, {**numbered(how), "grad_teacher": True})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [10, 1001])
def test_an_emulated_cuda_row_with_its_classes_apart_has_the_same_bits_in_any_batch(classes, dtype):
    student, teacher = (logits.reshape(5, 3, classes).transpose(0, 2, 1) for logits in plain_problem(classes, 15, dtype=dtype))
    images = np.ascontiguousarray(student), np.ascontiguousarray(teacher)
    how = {"reduction": 0, "temperature": 4.0, "ce_weight": 0.5, "grad_teacher": True}
    assert_same_rows_emulated(*images, how)
