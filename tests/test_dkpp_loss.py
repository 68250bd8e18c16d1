"""dkpp_loss: the compiled op against the reference twin, which draws the same permutations bit for bit."""

import itertools
import math
import re

import pytest
import torch
from helpers import FLOATS, assert_same_formula, draw, labels
from student_losses import check, run

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
# Degenerate, binary, the fewest that change places, below a vector, common, common, odd, vocabulary.
CLASSES = (1, 2, 3, 7, 10, 100, 1001, 32000)
ROWS = (0, 1, 3, 64, 257)
SIZES = [(n, c) for n, c in itertools.product(ROWS, CLASSES) if n * c <= 40_000]


def drawn(student, teacher, **options):
    """With the permutation of one seed."""
    return kd.dkpp_loss(student, teacher, generator=torch.Generator().manual_seed(11), **options)


def orders(*shape, dim=-1, device="cpu"):
    return draw(*shape, seed=5).argsort(dim).to(device)


@pytest.mark.parametrize("rows, classes", SIZES)
def test_sizes(machine, rows, classes):
    student, teacher = (draw(rows, classes, seed=seed, device=machine) for seed in (0, 1))
    loss, _ = check(drawn, student, teacher, temperature=2.0, reduction="none")
    check(kd.dkpp_loss, student, teacher, permutation=orders(rows, classes, device=machine))
    assert loss.shape == (rows,)


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_dtypes(device, dtypes):
    student, teacher = (draw(33, 100, seed=i, dtype=dtype, device=device) for i, dtype in enumerate(dtypes))
    loss, grad = check(drawn, student, teacher)
    assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    assert grad.dtype == dtypes[0]


@pytest.mark.parametrize("layout", ["dim=1", "dim=0", "channels_last", "every other"])
def test_layouts(machine, layout):
    student, teacher = draw(2, 10, 4, 6, device=machine), draw(2, 10, 4, 6, seed=1, device=machine)
    dim = 0 if layout == "dim=0" else 1
    if layout == "channels_last":
        student = student.to(memory_format=torch.channels_last)
    if layout == "every other":
        student = draw(2, 20, 4, 12, device=machine)[:, ::2, :, ::2]
    order = orders(*student.shape, dim=dim, device=machine)
    for reduction in ("none", "batchmean"):
        check(drawn, student, teacher, dim=dim, reduction=reduction)
        check(kd.dkpp_loss, student, teacher, permutation=order, dim=dim, reduction=reduction)
        spread_out = order.transpose(0, 3).contiguous().transpose(0, 3)
        check(kd.dkpp_loss, student, teacher, permutation=spread_out, dim=dim, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
def test_reductions_masks_and_weights(machine, reduction):
    student, teacher = draw(5, 13, 21, device=machine), draw(5, 13, 21, seed=1, device=machine)
    rows = dict(
        mask=labels(5, 13, classes=3, seed=1, device=machine) > 0,
        row_weight=draw(5, 13, seed=2, device=machine).abs(),
    )
    for names in ((), ("mask",), ("row_weight",), ("mask", "row_weight")):
        options = {name: rows[name] for name in names}
        check(drawn, student, teacher, reduction=reduction, **options)
    for tensor in (student, teacher):
        tensor[~rows["mask"]] = nan
    check(drawn, student, teacher, reduction=reduction, **rows)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
def test_row_weights_that_are_learned(device, reduction):
    results = []
    for backend in (device, "reference"):
        student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
        weight = draw(8, seed=2, dtype=torch.float64, device=device)
        inputs = (student.requires_grad_(), weight.requires_grad_())
        with kd.backend(backend):
            loss = drawn(student, teacher, row_weight=weight, reduction=reduction)
            results.append((loss, *torch.autograd.grad(loss.sum(), inputs)))
    assert_same_formula(*results)


def test_ties_and_extreme_logits(machine):
    student = draw(64, 37, scale=1e4, device=machine)
    teacher = draw(64, 37, scale=0.6, seed=1, device=machine).round()
    teacher[3] = 0  # all are the largest
    teacher[4, 5] = -inf
    teacher[5, :36] = -inf  # saturated
    check(drawn, student, teacher, reduction="none")
    student[6, 7] = -inf
    for bad in (nan, inf):
        teacher[8], student[9] = bad, bad
        loss, grad = check(drawn, student, teacher, reduction="none")
        assert loss[8:10].isnan().all() and grad[8:10].isnan().all() and loss[7].isfinite()


def test_a_generator_is_used_once_per_call(device):
    """Op and twin take the same seed from it, and leave it in the same state."""
    student, teacher = (draw(8, 30, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    states = []
    for backend in (device, "reference"):
        generator = torch.Generator().manual_seed(3)
        with kd.backend(backend):
            losses = [kd.dkpp_loss(student, teacher, generator=generator) for _ in range(2)]
        assert losses[0] != losses[1]
        states.append((generator.get_state(), *losses))
    assert_same_formula(*states)
    for backend in (device, "reference"):
        torch.manual_seed(4)
        with kd.backend(backend):
            states.append(kd.dkpp_loss(student, teacher))
    assert_same_formula(*states[2:])


# As a citizen of PyTorch


def with_order(student, teacher):
    order = orders(*student.shape, device=student.device)
    return kd.dkpp_loss(student, teacher, permutation=order, temperature=2.0)


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_compile(device, backend):
    backend = device if backend == "library" else backend
    order = orders(8, 10, device=device)

    def loss(student, teacher):
        return 2 * kd.dkpp_loss(student, teacher, permutation=order)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        student, teacher = (draw(8, 10, seed=each, dtype=torch.float64, device=device) for each in (seed, 7))
        expected = run(backend, loss, student, teacher)
        assert_same_formula(run(backend, compiled, student, teacher), expected)


# Not the reference by Inductor: it takes minutes to compile the unrolled rounds.
@pytest.mark.parametrize(
    "compiler, backend", [("aot_eager", "library"), ("aot_eager", "reference"), ("inductor", "library")]
)
def test_every_call_of_a_compiled_function_draws_anew(device, compiler, backend):
    backend = device if backend == "library" else backend
    compiled = torch.compile(lambda s, t: kd.dkpp_loss(s, t), fullgraph=True, backend=compiler)
    student, teacher = (draw(8, 30, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    torch.manual_seed(0)
    found = [run(backend, compiled, student, teacher)[0].item() for _ in range(4)]
    assert len(set(found)) == 4
    torch.manual_seed(0)
    assert run(backend, compiled, student, teacher)[0].item() == found[0]
    # Each of them is the loss of some permutation: a saturated teacher has but one.
    saturated = torch.full((8, 30), -inf, dtype=torch.float64, device=device).index_fill(1, torch.tensor(3, device=device), 0.0)
    expected = run(backend, kd.soft_cross_entropy, student, saturated)
    assert_same_formula(run(backend, compiled, student, saturated), expected)


@pytest.mark.parametrize("function", [drawn, with_order])
def test_gradcheck(device, function):
    student = draw(4, 3, scale=1.0, dtype=torch.float64, device=device).requires_grad_()
    teacher = draw(4, 3, seed=1, dtype=torch.float64, device=device)
    with kd.backend(device):
        assert torch.autograd.gradcheck(lambda s: function(s, teacher), student)
        assert torch.autograd.gradgradcheck(lambda s: function(s, teacher), student)


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (-1, 1, 0)], ids=str)
def test_vmap(device, in_dims, reduction):
    def stacked(tensors, at):
        return tensors[0] if at is None else torch.stack(tensors, at)

    drawn = [draw(6, 5, seed=seed, dtype=torch.float64, device=device) for seed in range(9)]
    each = drawn[:3], drawn[3:6], [tensor.argsort() for tensor in drawn[6:]]
    tensors = [stacked(tensors, at) for tensors, at in zip(each, in_dims)]
    mask = labels(6, classes=3, device=device) > 0

    def loss(student, teacher, permutation):
        return kd.dkpp_loss(student, teacher, permutation=permutation, mask=mask, reduction=reduction)

    both(device, torch.vmap(loss, in_dims), *tensors)
    both(device, torch.vmap(torch.func.grad(lambda *t: (loss(*t) ** 2).sum()), in_dims), *tensors)


@pytest.mark.parametrize("reduction", [0, 2])
def test_opcheck(device, reduction):
    op = torch.ops.kdkernels.dkpp_loss.default
    names = [argument.name for argument in op._schema.arguments]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        student = draw(4, 6, 5, dtype=dtype, device=device).requires_grad_()
        arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
        for permutation in (None, orders(4, 6, 5, device=device)):
            given = dict(
                student=student,
                teacher=student.detach().flip(0),
                permutation=permutation,
                mask=torch.arange(24, device=device).view(4, 6) > 3,
                row_weight=torch.ones(4, 6, dtype=arithmetic, device=device),
                denominator=torch.tensor(7.0, dtype=torch.float64, device=device),
                seed=torch.tensor(5) if permutation is None else None,
                temperature=2.0,
                reduction=reduction,
                groups=0,
                dim=2,
                grad_student=True,
            )
            torch.library.opcheck(op, tuple(given[name] for name in names))


# Errors


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


def call(student=None, teacher=None, **options):
    student = torch.zeros(2, 3) if student is None else student
    return kd.dkpp_loss(student, torch.zeros(2, 3) if teacher is None else teacher, **options)


def test_tensors_that_are_refused(backend):
    assert call().isfinite()
    rule = "dkpp_loss: student [2, 3] and teacher [2, 4] must have equal shapes"
    with refuses(ValueError, rule + "; use shared_classes=n where the first n classes of both are the same"):
        call(teacher=torch.zeros(2, 4))
    with refuses(TypeError, "dkpp_loss: permutation must be a torch.Tensor, got list"):
        call(permutation=[[0, 1, 2]] * 2)
    with refuses(TypeError, "dkpp_loss: permutation must hold integer classes, got float32"):
        call(permutation=torch.zeros(2, 3))
    with refuses(ValueError, "dkpp_loss: permutation must have the shape of the logits, [2, 3], got [3]"):
        call(permutation=torch.arange(3))
    with refuses(TypeError, "dkpp_loss: mask must be bool, got float32; convert it with mask.bool()"):
        call(mask=torch.ones(2))
    with refuses(TypeError, "dkpp_loss: row_weight must be a torch.Tensor, got float"):
        call(row_weight=1.0)


@pytest.mark.parametrize("bad", [[0, 1, 1], [0, 1, 3], [-1, 0, 1]], ids=str)
def test_classes_that_do_not_permute_are_refused(backend, bad):
    rule = "dkpp_loss: permutation must hold each class 0..2 once in every row, row 1 does not"
    order = torch.tensor([[2, 0, 1], bad])
    with refuses(ValueError, rule):
        call(permutation=order)
    with refuses(ValueError, rule):
        call(torch.zeros(3, 2), torch.zeros(3, 2), permutation=order.T, dim=0)


def test_options_that_are_refused(backend):
    for value in (0, -1.0, inf, nan):
        with refuses(ValueError, f"dkpp_loss: temperature must be finite and > 0, got {value}"):
            call(temperature=value)
    with refuses(ValueError, "dkpp_loss: temperature must be a number or a tensor of shape [] or [1], got [2]"):
        call(temperature=torch.ones(2))
    with refuses(TypeError, "dkpp_loss: generator must be a torch.Generator, got int"):
        call(generator=3)
    with refuses(
        ValueError,
        "dkpp_loss: reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got 'max'",
    ):
        call(reduction="max")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_generators_on_the_device_are_refused(backend):
    message = (
        "dkpp_loss: generator must be on the CPU, where drawing does not stall the device, got one on cuda:0"
    )
    with refuses(ValueError, message):
        call(generator=torch.Generator("cuda"))
