"""kdkernels.nn.CRDLoss: its two directions, its banks and normalizers, and several processes."""

import copy
import io
import re

import forks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import assert_same_formula, draw

import kdkernels as kd
from kdkernels.nn.memory_bank import _unit

pytestmark = pytest.mark.numeric

N_DATA, NEGATIVES = 30, 12


def module(seed=0, **options):
    torch.manual_seed(seed)
    return kd.nn.CRDLoss(5, 7, N_DATA, embed_dim=8, negatives=NEGATIVES, **options)


def batch(rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(N_DATA, (rows,), generator=generator)
    contrast = torch.randint(N_DATA, (rows, NEGATIVES + 1), generator=generator)
    contrast[:, 0] = index
    return draw(rows, 5, seed=seed), draw(rows, 7, seed=seed + 1), index, contrast


def embeddings(crd, student, teacher):
    return F.normalize(crd.student_head(student), dim=1), F.normalize(crd.teacher_head(teacher), dim=1)


def published_direction(embedding, bank, contrast, z, temperature=0.07, eps=1e-7):
    noise = NEGATIVES / N_DATA
    scores = (torch.einsum("bkd,bd->bk", bank[contrast], embedding) / temperature).exp()
    z = N_DATA * scores.detach().mean() if z is None else z
    p = scores / z
    losses = -(p[:, 0] / (p[:, 0] + noise + eps)).log() - (noise / (p[:, 1:] + noise + eps)).log().sum(1)
    return losses.mean(), z


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_three_steps_are_the_published_ones(backend):
    crd, z_s, z_t = module().double(), None, None
    for step in range(3):
        student, teacher, index, contrast = batch(seed=step)
        index[3] = index[0]  # the last row wins
        student, teacher = student.double().requires_grad_(), teacher.double().requires_grad_()
        e_s, e_t = embeddings(crd, student, teacher)
        expected_s, z_s = published_direction(e_s, crd.teacher_bank.clone(), contrast, z_s)
        expected_t, z_t = published_direction(e_t, crd.student_bank.clone(), contrast, z_t)
        inputs = (student, teacher, *crd.parameters())
        expected_gradients = torch.autograd.grad(expected_s + expected_t, inputs)
        banks = crd.student_bank.clone(), crd.teacher_bank.clone()

        with kd.backend(backend):
            loss, parts = crd(student, teacher, index, contrast, return_parts=True)
        (0.8 * loss).backward()
        assert_same_formula(loss, expected_s + expected_t)
        assert_same_formula(parts, {"student": expected_s.detach(), "teacher": expected_t.detach()})
        for tensor, gradient in zip(inputs, expected_gradients):
            assert_same_formula(tensor.grad, 0.8 * gradient)
        assert_same_formula((crd.student_normalizer, crd.teacher_normalizer), (z_s, z_t))

        for bank, before, e in zip((crd.student_bank, crd.teacher_bank), banks, (e_s, e_t)):
            expected = before.clone()
            for row, entry in enumerate(index.tolist()):
                expected[entry] = F.normalize(0.5 * before[entry] + 0.5 * e[row].detach(), dim=0)
            assert_same_formula(bank, expected)
        crd.zero_grad()


def test_normalizers_are_those_of_the_first_forward():
    crd = module()
    assert crd.student_normalizer.isnan() and crd.teacher_normalizer.isnan()
    crd.eval()
    before = copy.deepcopy(crd.state_dict())
    crd(*batch())
    first = crd.student_normalizer.clone()
    assert first > 0 and torch.equal(crd.student_bank, before["student_bank"])  # evaluation moves no bank
    crd.train()
    crd(*batch(seed=1))
    assert torch.equal(crd.student_normalizer, first)


def test_a_broken_first_batch_is_not_kept():
    crd = module().eval()
    student, *others = batch()
    assert crd(student * float("nan"), *others).isnan()
    assert crd.student_normalizer.isnan()
    assert crd(student, *others).isfinite() and crd.student_normalizer > 0


def test_state_dict_and_copies():
    crd = module()
    crd(*batch()).backward()
    twin = copy.deepcopy(crd)  # no graph hangs on the buffers
    file = io.BytesIO()
    torch.save(crd.state_dict(), file)
    file.seek(0)
    resumed = module(seed=1)
    resumed.load_state_dict(torch.load(file))
    names = {"student_bank", "teacher_bank", "student_normalizer", "teacher_normalizer"}
    assert names <= set(crd.state_dict())
    results = [(each(*batch(seed=2)), each.student_bank, each.teacher_bank) for each in (crd, twin, resumed)]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_banks_begin_with_entries_of_length_1():
    torch.manual_seed(0)
    crd = kd.nn.CRDLoss(3, 3, 500, embed_dim=128)
    for bank in (crd.student_bank, crd.teacher_bank):
        assert bank.shape == (500, 128) and bank.abs().max() <= (3 / 128) ** 0.5
        assert abs(bank.square().sum(1).mean() - 1) < 0.02
    assert not torch.equal(crd.student_bank, crd.teacher_bank)


def test_a_second_backward():
    """Of a training step it would differentiate other banks: torch refuses. In evaluation nothing has changed."""
    for crd in (module(), module().eval()):
        loss = 0.8 * crd(*batch())
        weight = crd.student_head.weight
        (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
        if crd.training:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(loss, weight)
        else:
            assert torch.equal(torch.autograd.grad(loss, weight)[0], first)


def test_transforms_in_evaluation():
    crd, (student, teacher, *indices) = module().eval().double(), batch()
    student, others = student.double().requires_grad_(), (teacher.double(), *indices)
    (gradient,) = torch.autograd.grad(crd(student, *others), student)
    loss = lambda features: crd(features, *others)
    assert_same_formula(torch.func.grad(loss)(student), gradient)
    direction = torch.ones_like(student)
    assert_same_formula(torch.func.jvp(loss, (student,), (direction,))[1], gradient.sum())


def test_drawn_negatives(monkeypatch):
    seen = []

    def spy(embedding, bank, index, **options):
        seen.append(index)
        return kd.functional.memory_bank.memory_bank_nce(embedding, bank, index, **options)

    monkeypatch.setattr(kd.functional, "memory_bank_nce", spy)
    crd = module().eval()
    student, teacher, index, _ = batch(rows=200)
    torch.manual_seed(3)
    first = crd(student, teacher, index)
    torch.manual_seed(3)
    assert torch.equal(crd(student, teacher, index), first)
    crd(student, teacher, index)
    drawn, again, other = seen[0], seen[2], seen[4]  # two directions each
    assert torch.equal(drawn, seen[1]) and torch.equal(drawn, again) and not torch.equal(drawn, other)
    assert drawn.shape == (200, NEGATIVES + 1) and torch.equal(drawn[:, 0], index)
    counts = drawn[:, 1:].flatten().bincount(minlength=N_DATA)
    assert counts.min() > 40 and counts.max() < 130  # 80 of each


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_features_of_one_value(value):
    """A head's output of all zeros has no direction: its row adds no NaN."""
    crd = module()
    with torch.no_grad():
        crd.student_head.bias.zero_()
    student, *others = batch()
    crd(torch.full_like(student, value), *others).backward()
    assert all(p.grad.isfinite().all() for p in crd.parameters())
    assert crd.student_bank.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_embeddings_of_no_length(dtype):
    """Of a head in half precision, as under autocast: 1e8 times a gradient is beyond float16."""
    embedding = torch.zeros(2, 4, dtype=dtype)
    embedding[1] = 1
    embedding.requires_grad_()
    (_unit(embedding) @ torch.ones(4)).mul(65536.0).sum().backward()
    assert embedding.grad.isfinite().all() and bool(embedding.grad[0].any()) is (dtype is torch.float32)


def test_autocast():
    crd = module()
    student, teacher, index, contrast = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = crd(student, teacher, index, contrast)
    loss.backward()
    assert loss.dtype is torch.float32 and crd.student_head.weight.grad.dtype is torch.float32
    assert crd.student_bank.dtype is torch.float32
    torch.testing.assert_close(loss, module()(student, teacher, index, contrast), rtol=0.02, atol=0)


def test_a_loss_scale_comes_before_the_rounding():
    """The gradient of a float16 head's output is that of the same numbers in float32, rounded once."""
    crd = module().eval()
    student, teacher, index, contrast = batch()
    outputs = []
    crd.student_head.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.autocast("cpu", torch.float16):
        loss = crd(student, teacher, index, contrast)
    ours = torch.autograd.grad(loss * 65536.0, outputs)[0]
    exact = outputs[0].detach().float().requires_grad_()
    of_student = kd.memory_bank_nce(
        _unit(exact), crd.teacher_bank, contrast, normalizer=crd.student_normalizer, temperature=crd.temperature, eps=crd.eps
    )
    (of_student * 65536.0).backward()
    assert ours.dtype is torch.float16 and torch.equal(ours, exact.grad.half())


def test_a_step_learns():
    torch.manual_seed(0)
    crd, (student, teacher, index, contrast) = module(), batch()
    optimizer = torch.optim.SGD(crd.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        loss = crd(student, teacher, index, contrast)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# Several processes


def steps(crd, rows):
    """Two training steps with these rows of each batch; gradients of the last."""
    for step in range(2):
        crd.zero_grad()
        student, teacher, *others = (tensor[rows] for tensor in batch(rows=8, seed=step))
        crd(student.double(), teacher.double(), *others).backward()
    crd = getattr(crd, "module", crd)
    return {**crd.state_dict(), "grad": crd.teacher_head.weight.grad}


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    crd = torch.nn.parallel.DistributedDataParallel(module().double(), broadcast_buffers=False)
    results = steps(crd, slice(4 * rank, 4 * rank + 4))
    if rank == 0:  # evaluation waits for nobody
        crd.module.eval()
        student, teacher, *others = batch()
        assert crd.module(student.double(), teacher.double(), *others).isfinite()
        unknown = module(seed=1).eval()
        assert unknown(*batch()).isfinite() and unknown.student_normalizer.isnan()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_are_one(tmp_path):
    forks.two(worker, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole = steps(module().double(), slice(None))
    for name in one:
        assert_same_formula(one[name], whole[name])


# Errors


def refuses(error, message):
    return pytest.raises(error, match="^CRDLoss: " + re.escape(message) + "$")


def test_batches_that_are_refused():
    crd, (student, teacher, index, contrast) = module(), batch()
    with refuses(ValueError, "student must be [B, student_dim], here [B, 5], got [6, 4]"):
        crd(student[:, :4], teacher, index)
    with refuses(ValueError, "teacher must be [B, teacher_dim], here [B, 7], got [6, 5]"):
        crd(student, student, index)
    with refuses(ValueError, "student [6, 5] and teacher [5, 7] must have as many rows as each other"):
        crd(student, teacher[:5], index)
    with refuses(TypeError, "index must hold integers, got float32"):
        crd(student, teacher, index.float())
    with refuses(ValueError, "index must have one value per row of student [6, 5], got [5]"):
        crd(student, teacher, index[:5])
    with refuses(ValueError, "index contains 30, valid entries are 0..29"):
        crd(student, teacher, index + 30 - index)
    with refuses(ValueError, "contrast_index must be [B, negatives+1], [6, 13], got [6, 12]"):
        crd(student, teacher, index, contrast[:, 1:])
    with refuses(TypeError, "contrast_index must hold integers, got float32"):
        crd(student, teacher, index, contrast.float())
    with pytest.raises(ValueError, match="^memory_bank_nce: index contains -1, valid entries are 0..29$"):
        crd(student, teacher, index, contrast - contrast - 1)
    assert crd.student_normalizer.isnan()


def test_options_that_are_refused():
    for name in ("student_dim", "teacher_dim", "n_data", "embed_dim", "negatives"):
        sizes = {"student_dim": 5, "teacher_dim": 7, "n_data": 30}
        with refuses(ValueError, f"{name} must be >= 1, got 0"):
            kd.nn.CRDLoss(**{**sizes, name: 0})
        with refuses(TypeError, f"{name} must be an int, got float"):
            kd.nn.CRDLoss(**{**sizes, name: 2.0})
    with refuses(ValueError, "momentum must be in [0, 1], got 1.5"):
        module(momentum=1.5)
    with refuses(ValueError, "temperature must be finite and > 0, got 0"):
        module(temperature=0)
    with refuses(ValueError, "eps must be finite and >= 0, got -1"):
        module(eps=-1)
