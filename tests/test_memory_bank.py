"""memory_bank_nce on tensors: the compiled op against its twin, and as a citizen of PyTorch."""

import re
from math import inf, nan

import pytest
import torch
from helpers import FLOATS, assert_accurate, assert_equal, assert_same_formula, draw, threads

import kdkernels as kd
from kdkernels.functional.memory_bank import update_entries

pytestmark = pytest.mark.numeric

OP = torch.ops.kdkernels.memory_bank_nce.default
ENTRIES = 40


def problem(rows=6, columns=20, width=24, seed=0, dtypes=(torch.float64,) * 2, device="cpu"):
    """Vectors of length 1."""
    embedding, bank = draw(rows, width, seed=seed), draw(ENTRIES, width, seed=seed + 1)
    index = torch.randint(ENTRIES, (rows, columns), generator=torch.Generator().manual_seed(seed))
    embedding, bank = (torch.nn.functional.normalize(x, dim=1).to(t) for x, t in zip((embedding, bank), dtypes))
    return embedding.to(device), bank.to(device), index.to(device)


def run(backend, embedding, bank, index, upstream=None, **options):
    """loss, parts, gradient"""
    embedding = embedding.detach().requires_grad_()
    with kd.backend(backend):
        loss, parts = kd.memory_bank_nce(embedding, bank, index, return_parts=True, **options)
        upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
        (gradient,) = torch.autograd.grad(loss, embedding, upstream)
    assert not any(part.requires_grad for part in parts.values())
    return loss.detach(), parts["normalizer"], parts["positive"], gradient


def as_published(embedding, bank, index, z, temperature, eps):
    """The formula of the authors' code."""
    noise = (index.shape[1] - 1) / bank.shape[0]
    p = torch.einsum("bkd,bd->bk", bank[index], embedding).div(temperature).exp() / z
    return -(p[:, 0] / (p[:, 0] + noise + eps)).log() - (noise / (p[:, 1:] + noise + eps)).log().sum(1)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "mean"])
@pytest.mark.parametrize("backend", ["library", "reference"])
def test_is_the_published_formula(device, backend, reduction):
    backend = device if backend == "library" else backend
    embedding, bank, index = problem(device=device)
    upstream = draw(6, seed=5, device=device) if reduction == "none" else torch.tensor(0.8, device=device)
    options = {"temperature": 0.2, "eps": 1e-3, "reduction": reduction}
    for normalizer in (None, 30.0, torch.tensor(30.0, device=device), torch.tensor(nan, device=device)):
        loss, z, positive, gradient = run(backend, embedding, bank, index, upstream, normalizer=normalizer, **options)
        scores = (torch.einsum("bkd,bd->bk", bank[index], embedding) / 0.2).exp()
        found = normalizer is None or not torch.as_tensor(normalizer) == 30
        assert_same_formula(z, ENTRIES * scores.mean() if found else torch.full_like(z, 30))
        assert_same_formula(positive, scores[:, 0] / z)
        leaf = embedding.clone().requires_grad_()
        rows = as_published(leaf, bank, index, z, 0.2, 1e-3)
        expected = {"none": rows, "sum": rows.sum()}.get(reduction, rows.mean())
        assert_same_formula(loss, expected.detach())
        assert_same_formula(gradient, torch.autograd.grad(expected, leaf, upstream.to(rows.dtype))[0])


@pytest.mark.parametrize("of_bank", FLOATS)
@pytest.mark.parametrize("of_embedding", FLOATS)
def test_dtypes(machine, of_embedding, of_bank):
    embedding, bank, index = problem(columns=300, width=33, dtypes=(of_embedding, of_bank), device=machine)
    ours = run(machine, embedding, bank, index)
    arithmetic = torch.float64 if torch.float64 in (of_embedding, of_bank) else torch.float32
    assert ours[0].dtype is arithmetic and ours[3].dtype is of_embedding
    names = ("loss", "normalizer", "positive", "gradient")
    assert_accurate(ours, lambda: run("reference", embedding.double(), bank.double(), index), names)


def test_results_do_not_depend_on_threads():
    arguments = problem(rows=64, columns=600, width=128)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run("cpu", *arguments))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_layouts(device, backend):
    backend = device if backend == "library" else backend
    embedding, bank, index = problem(device=device)
    expected = run(backend, embedding, bank, index)
    wide = torch.full((6, 60), nan, dtype=torch.float64, device=device)
    wide[:, 3:27] = embedding
    for arguments in (
        (wide[:, 3:27], bank, index),
        (embedding.t().contiguous().t(), bank.t().contiguous().t(), index.t().contiguous().t()),
    ):
        assert_same_formula(run(backend, *arguments), expected)


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_no_rows(device, backend):
    embedding, bank, index = problem(device=device)
    for reduction in ("batchmean", "sum", "none"):
        loss, z, positive, gradient = run(
            device if backend == "library" else backend, embedding[:0], bank, index[:0], reduction=reduction
        )
        assert loss.shape == ((0,) if reduction == "none" else ()) and not loss.any()
        assert z.isnan() and positive.shape == (0,) and gradient.shape == (0, 24)


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_extreme_scores(machine, backend):
    """Finite while the scores are, whatever their exponentials; infinite or NaN where the mathematics is."""
    backend = machine if backend == "library" else backend
    index = torch.tensor([[0, 1], [1, 0]], device=machine)
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=machine)
    embedding = torch.tensor([[200.0, 0.0]] * 2, device=machine)
    options = {"temperature": 1.0, "eps": 0.0, "reduction": "none"}
    loss, _, positive, gradient = run(backend, embedding, bank, index, normalizer=1.0, **options)
    # c = 1/2: the logits are 200 and -200, plus log 2.
    assert torch.equal(positive, torch.tensor([inf, 0.0], device=machine))
    assert_equal(loss, torch.tensor([0.0, 400.0], device=machine))
    assert_equal(gradient, torch.tensor([[0.0, 0.0], [2.0, 0.0]], device=machine))
    _, z, _, _ = run(backend, embedding, bank, index, **options)
    assert z == inf
    loss, z, _, _ = run(backend, -embedding, bank, index * 0, **options)
    assert z == 0 and (loss == inf).all()  # every exponential is 0 in float32
    for broken in (nan, inf):
        changed = embedding.clone()
        changed[1, 1] = broken
        loss, _, _, gradient = run(backend, changed, bank, index, normalizer=1.0, **options)
        assert loss[0].isfinite() and loss[1].isnan() and gradient[0].isfinite().all()


def test_float32_keeps_what_many_negatives_add_up_to(machine):
    embedding, bank, _ = problem(rows=2, width=128, dtypes=(torch.float32,) * 2, device=machine)
    bank = bank.repeat(1250, 1)
    index = torch.randint(50000, (2, 16385), generator=torch.Generator().manual_seed(0)).to(machine)
    loss = run(machine, embedding, bank, index)[0]
    truth = run("reference", embedding.double(), bank.double(), index)[0]
    assert (loss - truth).abs() < 5e-7 * truth


# PyTorch


def test_opcheck(device):
    for dtype in (torch.float32, torch.float16, torch.float64):
        embedding, bank, index = problem(dtypes=(dtype, torch.float32), device=device)
        arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
        z = torch.tensor(40.0, dtype=arithmetic, device=device)
        for reduction in (0, 2):
            for wanted in (True, False):
                embedding.requires_grad_(wanted)
                torch.library.opcheck(OP, (embedding, bank, index, z, 0.1, 1e-7, reduction, wanted))
        normalizer = torch.ops.kdkernels.memory_bank_normalizer.default
        for known in (None, z, z * nan):
            torch.library.opcheck(normalizer, (embedding.detach(), bank.t().contiguous().t(), index, known, 0.1))


def both(device, function, *tensors):
    """The same over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_func_derivatives(device, reduction):
    embedding, bank, index = problem(rows=3, device=device)

    def square(embedding):
        loss = kd.memory_bank_nce(embedding, bank, index, temperature=0.5, normalizer=30.0, reduction=reduction)
        return (loss**2).sum()

    first = torch.func.grad(square)
    both(device, first, embedding)
    both(device, torch.func.grad(lambda e: (first(e) ** 2).sum()), embedding)
    leaf = embedding.clone().requires_grad_()
    assert torch.autograd.gradcheck(square, leaf) and torch.autograd.gradgradcheck(square, leaf)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 1, 2), (-1, 0, None)], ids=str)
def test_vmap(device, in_dims):
    drawn = [problem(seed=seed, device=device) for seed in range(3)]
    tensors = [each[0] if at is None else torch.stack(each, at) for each, at in zip(zip(*drawn), in_dims)]

    def loss(embedding, bank, index):
        return kd.memory_bank_nce(embedding, bank, index, return_parts=True)

    def square(*tensors):
        return (kd.memory_bank_nce(*tensors, reduction="none") ** 2).sum()

    both(device, torch.vmap(loss, in_dims), *tensors)
    both(device, torch.vmap(torch.func.grad(square), in_dims), *tensors)


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_compile(device, backend):
    backend = device if backend == "library" else backend
    torch._dynamo.reset()  # each kind of normalizer is a graph of its own
    compiled = torch.compile(kd.memory_bank_nce, fullgraph=True, backend="aot_eager")
    for rows in (6, 9):
        embedding, bank, index = problem(rows=rows, device=device)
        embedding.requires_grad_()
        for normalizer in (None, 30.0, torch.tensor(nan, device=device)):
            with kd.backend(backend):
                ours, expected = (
                    torch.autograd.grad(2 * function(embedding, bank, index, normalizer=normalizer), embedding)
                    for function in (compiled, kd.memory_bank_nce)
                )
            assert_same_formula(ours, expected)


def test_autocast_and_a_bank_that_requires_grad(device):
    embedding, bank, index = problem(dtypes=(torch.float32,) * 2, device=device)
    expected = run(device, embedding, bank, index)
    with torch.autocast(device, torch.bfloat16):
        ours = run(device, embedding, bank.requires_grad_(), index)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def test_a_second_backward(device):
    embedding, bank, index = problem(device=device)
    embedding.requires_grad_()
    with kd.backend(device):
        loss = 3 * kd.memory_bank_nce(embedding, bank, index)
        first, second = (torch.autograd.grad(loss, embedding, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# The bank's upkeep


def test_update_of_a_repeated_index(device):
    """The last row wins, from the old entry: as if the others had not been there."""
    _, bank, _ = problem(device=device)
    embedding, before = draw(5, 24, seed=3, dtype=torch.float64, device=device), bank.clone()
    index = torch.tensor([7, 3, 7, 0, 7], device=device)
    update_entries(bank, index, embedding, momentum=0.25)
    expected = before.clone()
    for row in (1, 3, 4):
        entry = 0.25 * before[index[row]] + 0.75 * embedding[row]
        expected[index[row]] = entry / entry.norm()
    assert_same_formula(bank, expected)
    assert torch.equal(bank[[1, 2, 4]], before[[1, 2, 4]])


def test_update_to_a_vector_of_no_length(device):
    bank = torch.ones(2, 3, device=device)
    update_entries(bank, torch.tensor([1], device=device), torch.full((1, 3), -1.0, device=device), momentum=0.5)
    assert torch.equal(bank[1], torch.zeros(3, device=device))
    update_entries(bank, torch.empty(0, dtype=torch.int64, device=device), bank[:0], momentum=0.5)


# Errors


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


def refuses(error, message):
    return pytest.raises(error, match="^memory_bank_nce: " + re.escape(message) + "$")


def call(embedding=None, bank=None, index=None, **options):
    given, entries, columns = problem(rows=2, columns=3, width=4)
    embedding, bank = given if embedding is None else embedding, entries if bank is None else bank
    return kd.memory_bank_nce(embedding, bank, columns if index is None else index, **options)


def test_tensors_that_are_refused(backend):
    call()
    with refuses(ValueError, "embedding must be [rows, width] with at least 1 column, got [4]"):
        call(torch.zeros(4))
    rule = "bank must be float32, float16, bfloat16 or float64, got int64; convert it with bank.float()"
    with refuses(TypeError, rule):
        call(bank=torch.zeros(40, 4, dtype=torch.int64))
    with refuses(ValueError, "embedding [2, 4] and bank [40, 5] must have equal widths"):
        call(bank=torch.zeros(40, 5))
    with refuses(ValueError, "at least 1 entry is needed, got bank [0, 4]"):
        call(bank=torch.zeros(0, 4))
    with refuses(TypeError, "index must hold integers, got float32"):
        call(index=torch.zeros(2, 3))
    for shape in ((2,), (3, 3), (2, 1)):
        rule = "index must be [B, K+1] with a positive and at least 1 negative for each of the 2 embeddings"
        with refuses(ValueError, f"{rule}, got {list(shape)}"):
            call(index=torch.zeros(shape, dtype=torch.int64))
    for bad in (40, -1, 2**40):
        with refuses(ValueError, f"index contains {bad}, valid entries are 0..39"):
            call(index=torch.tensor([[0, 1, 2], [0, bad, 2]]))
    with refuses(ValueError, "embedding and bank must be on one device, got cpu and meta"):
        call(bank=torch.zeros(40, 4, device="meta"))


def test_options_that_are_refused(backend):
    for name, value, rule in (
        ("temperature", 0.0, "finite and > 0"),
        ("temperature", inf, "finite and > 0"),
        ("normalizer", -1.0, "finite and > 0"),
        ("normalizer", nan, "finite and > 0"),
        ("eps", -1e-7, "finite and >= 0"),
    ):
        with refuses(ValueError, f"{name} must be {rule}, got {value}"):
            call(**{name: value})
    with refuses(ValueError, "normalizer must be finite and > 0, got -1.0"):
        call(normalizer=torch.tensor(-1.0))
    with refuses(ValueError, "normalizer must be a number or a tensor of shape [] or [1], got [2]"):
        call(normalizer=torch.ones(2))
    with refuses(ValueError, "reduction must be one of 'none', 'sum', 'batchmean', 'mean', got 'elementmean'"):
        call(reduction="elementmean")
    with refuses(TypeError, "group must be a torch.distributed.ProcessGroup, got int"):
        call(group=2)


def test_an_update_out_of_range():
    with pytest.raises(ValueError, match=r"^update_entries: index contains 2, valid entries are 0\.\.1$"):
        update_entries(torch.ones(2, 3), torch.tensor([2]), torch.ones(1, 3), momentum=0.5)
