"""The compiled op against its reference twin: sizes, layouts, dtypes, options (helpers.check)."""

import itertools

import pytest
import torch
from helpers import FLOATS, assert_same_formula, check, draw, labels, run

import kdkernels as kd

pytestmark = pytest.mark.numeric

# Degenerate, binary, below a vector, common, common, aligned, odd, vocabulary.
CLASSES = (1, 2, 7, 10, 100, 1000, 1001, 32000)
# Empty, one, less than a vector or a warp, a common batch, one more than a power of two.
ROWS = (0, 1, 3, 64, 257)
# What adds nothing but time: many rows of a vocabulary.
SIZES = [(n, c) for n, c in itertools.product(ROWS, CLASSES) if n * c <= 300_000]


@pytest.mark.parametrize("rows, classes", SIZES)
def test_sizes(machine, rows, classes):
    student, teacher = (draw(rows, classes, seed=seed, device=machine) for seed in (0, 1))
    check(kd.softened_kl, student, teacher, temperature=4.0)
    target = labels(rows, classes=classes, device=machine)
    loss, *_ = check(kd.kd_loss, student, teacher, target, temperature=4.0)
    assert rows or loss == 0


@pytest.mark.parametrize("function", [kd.softened_kl, kd.soft_cross_entropy])
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_dtypes(device, function, dtypes):
    student, teacher = (draw(33, 100, seed=i, dtype=dtype, device=device) for i, dtype in enumerate(dtypes))
    loss, grad_student, grad_teacher = check(function, student, teacher, temperature=2.0)
    assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    assert (grad_student.dtype, grad_teacher.dtype) == dtypes


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd", "cross_entropy"])
def test_divergences_and_kinds(machine, divergence, kind, dtype):
    for eps, beta, scale_by_t2 in ((0.0, 0.5, True), (1e-3, 0.1, False), (0.0, 0.9, False)):
        student, teacher = (
            draw(17, 101, seed=1, dtype=dtype, device=machine),
            draw(17, 101, seed=2, device=machine),
        )
        teacher = {
            "logits": lambda x: x,
            "log_probs": lambda x: x.log_softmax(-1),
            "probs": lambda x: x.softmax(-1),
        }[kind](teacher).to(dtype)
        check(
            kd.softened_kl,
            student,
            teacher,
            temperature=1.5,
            divergence=divergence,
            teacher_kind=kind,
            target_eps=eps,
            beta=beta,
            scale_by_t2=scale_by_t2,
        )


def layouts(device):
    """[2, 10, 4, 6] views of one batch, and the dimension of their classes."""
    plain = draw(2, 10, 4, 6, device=device)
    wide = draw(2, 10, 4, 12, seed=1, device=device)
    return {
        "dim=1": (plain, 1),
        "dim=0": (plain, 0),
        "dim=2": (plain, 2),
        "dim=-1": (plain, -1),
        "channels_last": (plain.to(memory_format=torch.channels_last), 1),
        "transposed": (draw(6, 4, 10, 2, device=device).permute(3, 2, 1, 0), 1),
        "every other column": (wide[..., ::2], -1),
        "every other class": (draw(2, 20, 4, 6, device=device)[:, ::2], 1),
        "sliced rows": (draw(5, 10, 4, 6, device=device)[1:4:2], 1),
        "expanded rows": (plain[:1].expand(2, -1, -1, -1), 1),
        "expanded classes": (plain[:, :1].expand(-1, 10, -1, -1), 1),
        "a sequence but its end": (draw(2, 11, 4, 6, device=device)[:, :-1], -1),
        "a sequence but its beginning": (draw(2, 10, 5, 6, device=device)[:, :, 1:], -1),
        "images but their edge": (draw(2, 10, 4, 7, device=device)[..., :-1], 1),
        "images but their corner": (draw(2, 10, 5, 7, device=device)[:, :, :-1, :-1], 1),
        "every dimension sliced": (draw(3, 11, 5, 6, device=device)[:2, :-1, 1:], -1),
        "more strides than three": (draw(2, 10, 9, 13, device=device).transpose(0, 2)[1::2, :, :, 1::2].transpose(0, 2), 3),
        "offset by one element": (draw(481, device=device)[1:].view(2, 10, 4, 6), 1),
    }


@pytest.mark.parametrize("teacher_layout", ["dim=1", "channels_last", "expanded rows"])
@pytest.mark.parametrize("layout", layouts("cpu"))
def test_layouts(machine, layout, teacher_layout):
    student, dim = layouts(machine)[layout]
    teacher = layouts(machine)[teacher_layout][0] * 0.5
    row_shape = student.sum(dim).shape
    target = labels(*row_shape, classes=student.shape[dim], device=machine)
    _, grad_student, _ = check(kd.kd_loss, student, teacher, target, dim=dim)
    check(kd.softened_kl, student, teacher, dim=dim, reduction="none", mask=target != 1)
    if layout == "channels_last":
        assert grad_student.is_contiguous(memory_format=torch.channels_last)


def test_one_row_without_batch_dimension(device):
    student, teacher = draw(10, device=device), draw(10, seed=1, device=device)
    check(kd.softened_kl, student, teacher, temperature=2.0, mask=torch.tensor(True, device=device))
    check(kd.kd_loss, student, teacher, torch.tensor(3, device=device), reduction="none")


@pytest.mark.parametrize(
    "shape, dim", [((2, 0, 3, 5), -1), ((0, 5, 4, 4), 1), ((2, 5, 0, 4), 1), ((0, 5), 1)]
)
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
def test_no_rows(device, shape, dim, reduction):
    student, teacher = draw(*shape, device=device), draw(*shape, device=device)
    loss, grad_student, grad_teacher = check(kd.softened_kl, student, teacher, dim=dim, reduction=reduction)
    assert grad_student.shape == grad_teacher.shape == shape
    assert loss.numel() == 0 if reduction == "none" else loss == 0
    target = labels(*student.sum(dim).shape, classes=5, device=device)
    check(kd.kd_loss, student, teacher, target, dim=dim, reduction=reduction)


def test_no_rows_of_any_layout(device):
    """PyTorch calls every tensor without numbers contiguous, whatever its strides: no copy gives it others."""
    student = draw(3, 5, 3, 2, device=device)[:, :, 3:]
    teacher = draw(4, 6, 1, 3, device=device, dtype=torch.float64)[1:, 1:, 1:, 1:]
    loss, grad_student, grad_teacher = check(kd.softened_kl, student, teacher)
    assert loss == 0 and loss.dtype == grad_teacher.dtype == torch.float64
    assert grad_student.shape == grad_teacher.shape == (3, 5, 0, 2)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean", "mean"])
def test_reductions_masks_weights_temperatures(machine, reduction):
    rows = (5, 13)
    student, teacher = draw(*rows, 21, device=machine), draw(*rows, 21, seed=1, device=machine)
    target = labels(*rows, classes=21, device=machine)
    target[0, :3] = -100
    options = dict(
        mask=labels(*rows, classes=3, seed=1, device=machine) > 0,
        row_weight=draw(*rows, seed=2, device=machine).abs(),
        temperature=draw(*rows, seed=3, device=machine).abs() + 0.5,
    )
    for names in itertools.chain.from_iterable(itertools.combinations(options, count) for count in range(4)):
        chosen = {name: options[name] for name in names}
        check(kd.softened_kl, student, teacher, reduction=reduction, **chosen)
        check(
            kd.kd_loss, student, teacher, target, reduction=reduction, ce_weight=0.3, kl_weight=0.7, **chosen
        )


@pytest.mark.parametrize(
    "dtypes", list(itertools.product((torch.float16, torch.float32, torch.float64), repeat=2)), ids=str
)
def test_row_tensors_of_any_float_dtype(device, dtypes):
    student, teacher = draw(8, 10, device=device), draw(8, 10, seed=1, device=device)
    weight, temperature = (torch.arange(1, 9, device=device).to(dtype) for dtype in dtypes)
    loss, *_ = run(device, kd.softened_kl, student, teacher, row_weight=weight, temperature=temperature)
    expected, *_ = run(
        device, kd.softened_kl, student, teacher, row_weight=weight.float(), temperature=temperature.float()
    )
    assert loss == expected and loss.dtype is torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 0, 7, 1000])
def test_hard_labels(machine, smoothing, ignore_index):
    student, teacher = draw(40, 11, device=machine), draw(40, 11, seed=1, device=machine)
    target = labels(40, classes=11, device=machine)
    target[::4] = ignore_index
    options = dict(label_smoothing=smoothing, ignore_index=ignore_index, target_eps=1e-4)
    for reduction in ("none", "sum", "batchmean", "elementmean"):
        check(kd.kd_loss, student, teacher, target, reduction=reduction, **options)
    check(kd.kd_loss, student, teacher, torch.full_like(target, ignore_index), **options)  # no label at all


def test_parts_are_the_terms_before_their_weights(device):
    student, teacher = (draw(20, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    target, mask = labels(20, classes=10, device=device), labels(20, classes=2, seed=1, device=device) > 0
    student.requires_grad_()
    for reduction, weights in itertools.product(("batchmean", "none"), ((0.25, 0.5), (0.0, 2.0), (2.0, 0.0))):
        ce_weight, kl_weight = weights
        options = dict(
            reduction=reduction, mask=mask, ce_weight=ce_weight, kl_weight=kl_weight, return_parts=True
        )
        with kd.backend(device):
            loss, parts = kd.kd_loss(student, teacher, target, **options)
        with kd.backend("reference"):
            expected, expected_parts = kd.kd_loss(student, teacher, target, **options)
        assert_same_formula(loss, expected)
        assert_same_formula(parts, expected_parts)
        assert_same_formula(loss, ce_weight * parts["ce"] + kl_weight * parts["kl"])
        assert not parts["ce"].requires_grad and not parts["kl"].requires_grad


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd", "cross_entropy"])
def test_float64_is_exact_to_1e12(machine, divergence):
    student, teacher = (draw(9, 1001, seed=seed, dtype=torch.float64, device=machine) for seed in (0, 1))
    options = dict(temperature=3.0, divergence=divergence, reduction="none")
    ours = run(machine, kd.softened_kl, student, teacher, **options)
    expected = run("reference", kd.softened_kl, student, teacher, **options)
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())
