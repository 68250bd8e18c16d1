"""The compiled op at the edge of arithmetic: infinities, huge logits, broken and equal rows, threads."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_same_formula, check, draw, labels, run, threads

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
DIVERGENCES = ("forward", "reverse", "jsd", "tvd", "cross_entropy")
# Less than a vector, a vector and a bit, several blocks of a sum.
CLASSES = (3, 37, 2049)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("more", [{}, {"standardize": True}, {"skew": 0.3}], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES[:4])
def test_equal_logits_have_loss_and_gradient_exactly_zero(machine, divergence, more, classes):
    if "skew" in more and divergence not in ("forward", "reverse"):
        pytest.skip("no skew")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        logits = draw(5, classes, dtype=dtype, device=machine)
        student = logits.clone().requires_grad_()
        with kd.backend(machine):
            kd.softened_kl(student, logits, divergence=divergence, **more).backward()
        assert (student.grad == 0).all()
        loss, grad_student, grad_teacher = run(machine, kd.softened_kl, logits, logits, divergence=divergence, **more)
        assert loss == 0 and (grad_student == 0).all() and (grad_teacher == 0).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_huge_logits(machine, divergence, temperature):
    """Nothing overflows, and a common offset of 1e4 costs no digit."""
    options = dict(temperature=temperature, divergence=divergence, reduction="none")
    student, teacher = draw(4, 37, scale=1e4, device=machine), draw(4, 37, seed=1, scale=1e4, device=machine)
    if divergence in (
        "forward",
        "cross_entropy",
    ):  # the reverse divides by probabilities that only float64 tells from 0
        check(kd.softened_kl, student, teacher, **options)
    student, teacher = (tensor.round().div(2000) for tensor in (student, teacher))  # exact also beside 1e4
    student, teacher = (tensor * 1024 // 1 / 1024 for tensor in (student, teacher))
    expected = run(machine, kd.softened_kl, student, teacher, **options)
    for a, b in zip(run(machine, kd.softened_kl, student + 8192, teacher - 8192, **options), expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("temperature", [0.1, 100.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_temperatures(machine, divergence, temperature):
    # Cold: only a few classes have a probability that float32 can hold; the reverse needs all of them.
    scale = 1.0 if temperature < 1 and divergence == "reverse" else 3.0
    student, teacher = (
        draw(16, 37, scale=scale, device=machine),
        draw(16, 37, seed=1, scale=scale, device=machine),
    )
    check(kd.softened_kl, student, teacher, temperature=temperature, divergence=divergence, reduction="none")


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_impossible_classes(machine, divergence, classes):
    """-inf in both, in the student, in the teacher: inf where the mathematics says so, never NaN."""
    for in_student, in_teacher in ((True, True), (True, False), (False, True)):
        student, teacher = draw(3, classes, device=machine), draw(3, classes, seed=1, device=machine)
        student[1, 1] = -inf if in_student else student[1, 1]
        teacher[1, 1] = -inf if in_teacher else teacher[1, 1]
        infinite = {"forward": in_student and not in_teacher, "reverse": in_teacher and not in_student}
        infinite["cross_entropy"] = infinite["forward"]
        options = dict(divergence=divergence, reduction="none")
        if not infinite.get(divergence):
            check(kd.softened_kl, student, teacher, **options)
            continue
        for backend in (machine, "reference"):
            loss, grad_student, grad_teacher = run(backend, kd.softened_kl, student, teacher, **options)
            assert loss[1] == inf and loss[[0, 2]].isfinite().all()
            assert grad_student[[0, 2]].isfinite().all() and grad_teacher[[0, 2]].isfinite().all()
            if divergence != "reverse":  # p - q, which knows of no infinity
                assert grad_student[1].isfinite().all()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_a_skew_keeps_impossible_classes_finite(machine, divergence, classes):
    skew, infinities = 0.1, ((True, True), (True, False), (False, True))
    for in_student, in_teacher in infinities:
        student, teacher = draw(3, classes, device=machine), draw(3, classes, seed=1, device=machine)
        student[1, 1] = -inf if in_student else student[1, 1]
        teacher[1, 1] = -inf if in_teacher else teacher[1, 1]
        loss, *_ = check(kd.softened_kl, student, teacher, divergence=divergence, skew=skew, reduction="none")
        assert (loss <= -math.log(skew)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("classes", (1, 2, *CLASSES))
def test_constant_rows_are_standardized_to_0(machine, classes, dtype):
    student, teacher = draw(4, classes, dtype=dtype, device=machine), draw(4, classes, seed=1, dtype=dtype, device=machine)
    student[1], teacher[2], student[3], teacher[3] = 0.3, 1e4, -7.7, -1e-3
    for divergence in DIVERGENCES:
        options = dict(divergence=divergence, standardize=True, temperature=2.0, reduction="none")
        loss, grad_student, grad_teacher = check(kd.softened_kl, student, teacher, **options)
        assert loss.isfinite().all() and grad_student.isfinite().all() and grad_teacher.isfinite().all()
        assert (grad_student[[1, 3]] == 0).all() and (grad_teacher[[2, 3]] == 0).all()
        assert loss[3] == 0 or divergence == "cross_entropy"


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_impossible_classes_are_not_standardized(machine, divergence):
    student, teacher = draw(5, 37, device=machine), draw(5, 37, seed=1, device=machine)
    student[1:, 5] = teacher[1:, 5] = student[2] = teacher[3] = -inf
    student[2, 7] = teacher[3, 7] = 1.5  # rows of two classes
    student[2, 8], teacher[3, 8] = -0.5, 0.25
    student[3, 9:] = teacher[2, 9:] = -inf
    student[3, :7] = teacher[2, :7] = -inf
    options = dict(divergence=divergence, standardize=True, reduction="none")
    ours = check(kd.softened_kl, student, teacher, **options)
    without = [torch.cat((logits[:, :5], logits[:, 6:]), 1)[1:] for logits in (student, teacher)]
    loss, *_ = run(machine, kd.softened_kl, *without, **options)
    torch.testing.assert_close(ours[0][1:], loss, rtol=1e-5, atol=1e-6)
    assert all((gradient[1:, 5] == 0).all() for gradient in ours[1:])


def test_standardized_logits_forget_scale_and_offset(machine):
    """Powers of 2 and whole numbers, whose products and sums are exact: not a bit changes but for the 1e-7."""
    student, teacher = (draw(4, 100, seed=seed, device=machine).mul(8).round() for seed in (0, 1))
    options = dict(standardize=True, temperature=2.0, reduction="none")
    expected, *_ = run(machine, kd.softened_kl, student, teacher, **options)
    ours, *_ = check(kd.softened_kl, 64 * student + 8192, teacher / 4 - 512, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("divergence", ["forward", "jsd", "cross_entropy"])
def test_one_hot_teachers(machine, divergence, classes):
    student, hot = draw(8, classes, device=machine), labels(8, classes=classes, device=machine)
    probs = torch.nn.functional.one_hot(hot, classes).float()
    check(kd.softened_kl, student, probs, teacher_kind="probs", divergence=divergence)
    check(kd.softened_kl, student, probs.log(), teacher_kind="log_probs", divergence=divergence)
    check(kd.softened_kl, student, probs.log(), divergence=divergence)
    check(kd.softened_kl, student, 1e4 * probs, divergence=divergence)
    if divergence != "jsd":
        student, probs = student.double(), probs.double()
        _, grad_student, _ = run(machine, kd.softened_kl, student, probs, teacher_kind="probs", divergence=divergence)
        student.requires_grad_()
        torch.nn.functional.cross_entropy(student, hot).backward()
        assert_same_formula(grad_student, student.grad)


def test_certain_student_against_certain_label(machine):
    student, teacher = draw(2, 5, device=machine), draw(2, 5, seed=1, device=machine)
    student[0, 2] = -inf
    for smoothing in (0.0, 0.1, 1.0):
        for target in ([2, 0], [1, 0]):
            check(
                kd.kd_loss,
                student,
                teacher,
                torch.tensor(target, device=machine),
                label_smoothing=smoothing,
                kl_weight=0,
                reduction="none",
            )


@pytest.mark.parametrize("bad", [nan, inf, "all -inf"], ids=str)
@pytest.mark.parametrize("where", ["student", "teacher"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_broken_rows_are_nan_and_mask_hides_them(machine, divergence, where, bad):
    student, teacher = draw(3, 19, device=machine), draw(3, 19, seed=1, device=machine)
    broken = student if where == "student" else teacher
    broken[1, slice(None) if bad == "all -inf" else 4] = -inf if bad == "all -inf" else bad
    for backend in (machine, "reference"):
        loss, grad_student, grad_teacher = run(
            backend, kd.softened_kl, student, teacher, divergence=divergence, reduction="none"
        )
        assert loss[1].isnan() and loss[[0, 2]].isfinite().all()
        assert grad_student[[0, 2]].isfinite().all() and grad_teacher[[0, 2]].isfinite().all()
    for reduction in ("none", "sum", "batchmean", "elementmean"):
        mask = torch.tensor([True, False, True], device=machine)
        weight, temperature = (
            torch.tensor([1.0, nan, 2.0], device=machine),
            torch.tensor([1.0, 3.0, 2.0], device=machine),
        )
        _, grad_student, grad_teacher = check(
            kd.softened_kl,
            student,
            teacher,
            mask=mask,
            divergence=divergence,
            reduction=reduction,
            row_weight=weight,
            temperature=temperature,
        )
        assert (grad_student[1] == 0).all() and (grad_teacher[1] == 0).all()


def test_a_broken_row_without_mask_and_label_counts_for_nothing(machine):
    student, teacher = draw(3, 19, device=machine), draw(3, 19, seed=1, device=machine)
    student[1], teacher[1] = nan, nan
    target = torch.tensor([1, -100, 2], device=machine)
    check(kd.kd_loss, student, teacher, target, mask=target >= 0)
    for reduction in ("none", "sum", "batchmean", "elementmean"):  # nothing counts
        none = torch.full_like(target, -100)
        results = run(machine, kd.kd_loss, student, teacher, none, mask=none > 0, reduction=reduction)
        assert all((tensor == 0).all() for tensor in results)


def test_a_term_of_weight_zero_is_silent(machine):
    """Even where it is infinite or NaN, in the loss and in the gradients."""
    student, teacher = draw(2, 19, device=machine), draw(2, 19, seed=1, device=machine)
    student[0, 3] = -inf
    target = torch.tensor([3, 5], device=machine)  # both terms are infinite
    for options in (dict(ce_weight=0.0), dict(kl_weight=0.0), dict(ce_weight=0.0, kl_weight=0.0)):
        possible = torch.tensor([4, 5], device=machine) if "ce_weight" not in options else target
        allowed = teacher.masked_fill(student == -inf, -inf) if "kl_weight" not in options else teacher
        check(kd.kd_loss, student, allowed, possible, **options)
    teacher[1] = nan
    check(kd.kd_loss, student, teacher, torch.tensor([4, 5], device=machine), kl_weight=0.0)


def jensen_shannon(student, teacher):
    """Per row, in the precision of its arguments, and the largest logarithm of a probability."""
    log_q, log_p = (rows - np.log(np.exp(rows).sum(1, keepdims=True)) for rows in (student, teacher))
    terms = [np.exp(a) * np.log1p(np.expm1(b - a) / 2) for a, b in ((log_p, log_q), (log_q, log_p))]  # -log(m / p)
    return -sum(terms).sum(1) / 2, np.abs([log_p, log_q]).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nearly_equal_distributions_keep_their_value(machine, dtype):
    """A Jensen-Shannon divergence far below the machine precision, from terms that cancel class by class."""
    teacher = draw(8, 50, scale=1.0, device=machine).mul(64).round().div(64)
    for step in (2.0**-6, 2.0**-12):
        student = teacher + step * draw(8, 50, seed=1, scale=1.0, device=machine).round()
        ours, *_ = check(kd.softened_kl, student.to(dtype), teacher.to(dtype), divergence="jsd", reduction="none")
        wide = [rows.cpu().numpy().astype(np.longdouble) for rows in (student.double(), teacher.double())]
        truth, size = jensen_shannon(*wide)
        # Roundings of two logarithms move their difference, of which the divergence is the square: by twice as much.
        lost = 2 * 4 * torch.finfo(dtype).eps * size / step
        assert (np.abs(ours.cpu().numpy() / truth - 1) <= lost).all()


def test_labels_out_of_range_on_a_device_that_cannot_raise():
    if not torch.cuda.is_available():
        pytest.skip("a CPU raises: test_softened_kl_errors.py")
    student, teacher = draw(3, 5, device="cuda"), draw(3, 5, seed=1, device="cuda")
    target = torch.tensor([1, 5, -100], device="cuda")
    loss, grad_student, _ = run("cuda", kd.kd_loss, student, teacher, target, reduction="none")
    assert loss[1].isnan() and loss[[0, 2]].isfinite().all()
    assert grad_student[1].isnan().all() and grad_student[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape, dim", [((300, 1000), -1), ((64, 100, 9, 9), 1), ((2, 32000), -1)])
def test_results_do_not_depend_on_threads_or_on_the_run(machine, shape, dim):
    student, teacher = draw(*shape, device=machine), draw(*shape, seed=1, device=machine)
    target = labels(*student.sum(dim).shape, classes=shape[dim], device=machine)
    results = []
    for count in (1, 2, 2):
        with threads(count):
            results.append(run(machine, kd.kd_loss, student, teacher, target, dim=dim))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("classes", [1_000_000, 999_999])
def test_a_gradient_too_large_for_a_cache(machine, classes):
    """It is written past the caches where its rows lie as vectors do, with the bits of one that is not."""
    rows, apart = 9, 1_000_000  # 36 MB
    student, teacher = (draw(rows, apart, seed=seed, device=machine)[:, :classes] for seed in (0, 1))
    target = labels(rows, classes=classes, device=machine)

    def gradient(of):
        leaf = student[of].detach().requires_grad_()
        with kd.backend(machine):
            kd.kd_loss(leaf, teacher[of], target[of], reduction="sum").backward()
        return leaf.grad

    whole = gradient(slice(None))
    for row in range(rows):
        assert torch.equal(whole[row : row + 1], gradient(slice(row, row + 1)))


def softened_both_ways(backend, student, teacher, **options):
    """(loss, gradient of the first, gradient of the second), and the same with the two exchanged."""
    loss, first, second = run(backend, kd.softened_kl, student, teacher, **options)
    exchanged, second_first, first_second = run(backend, kd.softened_kl, teacher, student, **options)
    return (loss, first, second), (exchanged, first_second, second_first)


@pytest.mark.parametrize("classes", [1, *CLASSES])
def test_even_jensen_shannon_is_symmetric_to_the_bit(machine, classes):
    for dtype in (torch.float32, torch.float16, torch.float64):
        student, teacher = (draw(64, classes, seed=seed, dtype=dtype, device=machine) for seed in (0, 1))
        for backend in (machine, "reference"):
            ours, exchanged = softened_both_ways(backend, student, teacher, divergence="jsd", temperature=3.0)
            assert all(torch.equal(a, b) for a, b in zip(ours, exchanged))


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_hot_divergences_lose_no_digit_to_the_number_of_classes(machine, divergence):
    """log(sum_t / sum_s) has the roundings of the two sums, of their quotient and its own: at temperature 50 each is one of
    a number near 1, where log sum_t - log sum_s has two of log 30000, up to eight times as large."""
    temperature, roundings = 50.0, 8
    student, teacher = (draw(16, 30000, seed=seed, scale=1.0, device=machine) for seed in (0, 1))
    options = dict(divergence=divergence, temperature=temperature, reduction="none")
    truth, *_ = run("reference", kd.softened_kl, student.double(), teacher.double(), **options)
    for backend in (machine, "reference"):
        loss, *_ = run(backend, kd.softened_kl, student, teacher, **options)
        assert (loss - truth).abs().max() <= roundings * 2.0**-24 * temperature**2
