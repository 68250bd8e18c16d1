"""Losses whose target follows from the label alone: no teacher, or none but its confidence."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._names import CONVENTIONS, REDUCTIONS
from .._shards import row_loss
from .._shared.label_targets import over_rows, smoothed_label, virtual_teacher
from .._shared.row_statistics import confidence_weights
from .._shared.rows import arithmetic


def virtual_teacher_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, integer labels in [0, C) or ignore_index
    *,
    correct_prob: float = 0.99,
    temperature: float | Tensor = 20.0,  # > 0; a tensor has no dimensions
    student_temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Teacher-free distillation: cross entropy plus the divergence from a teacher made by hand.

    That teacher gives the label `a = correct_prob` and every other class `(1 - a) / (C - 1)`; these
    probabilities are softened as if they were logits. With `u = softmax(p / temperature)` of them::

        ce_weight * CE(student, target) + kl_weight * KL(u || softmax(student / student_temperature))

    There is no T^2. For logits `[N, C]` that is::

        p = torch.full_like(student, (1 - a) / (C - 1)).scatter(1, target[:, None], a)
        log_q = F.log_softmax(student / student_temperature, -1)
        kl = F.kl_div(log_q, F.softmax(p / temperature, -1), reduction="batchmean")
        ce_weight * F.cross_entropy(student, target) + kl_weight * kl

    in one sweep over memory, without any tensor of targets.

    Arguments:
        student: logits `[..., C]`, C >= 2; float32, float16, bfloat16 or float64.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [0, C) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN.
        correct_prob: a, in [0, 1]. The paper asks for 0.9 and more; 0.99 is its code's.
        temperature: of the virtual teacher, finite and > 0, or a constant tensor of one number: where that is not
            read (see `kdkernels.functional`), the reference runs. The paper uses 20 on ImageNet.
        student_temperature: the same for the student. 1 is the code's for CIFAR-100; the paper's equation 9 has
            `temperature` here too.
        ce_weight, kl_weight: finite and >= 0; the paper's are 1 - alpha and alpha. A term of weight 0 adds
            exactly 0, even where it is infinite.
        ignore_index: label of rows that drop out of both terms and of their count.
        reduction: `"batchmean"` (mean over the rows that are not ignored, alias `"mean"`), `"sum"`, `"none"`
            (row shape) or `"elementmean"`, which divides the mean divergence by C as well, as the code does.
        denominator: what both means divide by in place of their counted rows, such as the rows of all micro-batches
            and processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.
        return_parts: also return `{"ce", "kl"}`, detached and on the device: each term before its weight,
            reduced like the loss.

    Returns:
        float32, or float64 for float64 logits: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization",
        CVPR 2020, https://arxiv.org/abs/1909.11723, equation 9.

    >>> virtual_teacher_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2]), correct_prob=0.9)
    tensor(0.7025)
    """
    if is_sharded(student):
        return row_loss(virtual_teacher_loss, locals(), "target")
    dim = _checks.logits_alone("virtual_teacher_loss", student, dim)
    _checks.several_classes("virtual_teacher_loss", student, dim)
    target = _checks.labels("virtual_teacher_loss", target, student, dim)
    ignore_index = _checks.integer("virtual_teacher_loss", "ignore_index", ignore_index)
    correct_prob = _checks.unit_interval("virtual_teacher_loss", "correct_prob", correct_prob)
    temperature = _checks.one_temperature("virtual_teacher_loss", temperature, student, "student")
    student_temperature = _checks.one_temperature(
        "virtual_teacher_loss", student_temperature, student, "student", name="student_temperature"
    )
    ce_weight = _checks.not_negative("virtual_teacher_loss", "ce_weight", ce_weight)
    kl_weight = _checks.not_negative("virtual_teacher_loss", "kl_weight", kl_weight)
    _checks.one_of("virtual_teacher_loss", "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("virtual_teacher_loss", denominator, reduction)
    return_parts = _checks.flag("virtual_teacher_loss", "return_parts", return_parts)

    # The op takes numbers.
    unread = isinstance(temperature, Tensor) or isinstance(student_temperature, Tensor)
    if not _backend.use_library("virtual_teacher_loss", student) or unread:
        return reference.virtual_teacher_loss(
            student,
            target,
            correct_prob=correct_prob,
            temperature=temperature,
            student_temperature=student_temperature,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
            return_parts=return_parts,
        )

    on, off = virtual_teacher(student.shape[dim], correct_prob, temperature)
    loss, parts = ops.label_loss(
        function="virtual_teacher_loss",
        student=student,
        target=target,
        on=on,
        off=off,
        relative=True,
        temperature=student_temperature,
        kl_weight=kl_weight,
        ce_weight=ce_weight,
        return_parts=return_parts,
        ignore_index=ignore_index,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )
    return (loss, {"ce": parts[1], "kl": parts[0]}) if return_parts else loss


def label_smoothing_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, integer labels in [0, C) or ignore_index
    *,
    smoothing: float = 0.1,
    convention: str = "paper",
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    r"""Cross entropy with the label smoothed: `-sum_c u_c log softmax(student)_c`.

    With `s = smoothing`, u is on the label and on each other class::

        "paper"     1 - s + s / C        s / C
        "others"    1 - s                s / (C - 1)

    The first is `F.cross_entropy(student, target, label_smoothing=s)` for logits `[N, C]`; the second is the
    first at `s * C / (C - 1)`, and what the code of teacher-free distillation compares itself with.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `"others"` needs C >= 2, unless s
            is 0.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [0, C) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN.
        smoothing: s, in [0, 1]; 0 is plain cross entropy.
        convention: `"paper"` or `"others"`.
        ignore_index: label of rows that drop out of the loss and of its count.
        reduction: `"batchmean"` (mean over the rows that are not ignored, alias `"mean"`), `"sum"` or
            `"none"` (row shape). A row has one value: `"elementmean"` is `"batchmean"`.
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.

    Returns:
        float32, or float64 for float64 logits: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision",
        CVPR 2016, https://arxiv.org/abs/1512.00567, section 7.

    >>> label_smoothing_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2]))
    tensor(0.5076)
    """
    if is_sharded(student):
        return row_loss(label_smoothing_loss, locals(), "target")
    dim = _checks.logits_alone("label_smoothing_loss", student, dim)
    target = _checks.labels("label_smoothing_loss", target, student, dim)
    ignore_index = _checks.integer("label_smoothing_loss", "ignore_index", ignore_index)
    smoothing = _checks.unit_interval("label_smoothing_loss", "smoothing", smoothing)
    _checks.one_of("label_smoothing_loss", "convention", convention, CONVENTIONS)
    if convention == "others" and smoothing:
        _checks.several_classes("label_smoothing_loss", student, dim)
    _checks.one_of("label_smoothing_loss", "reduction", over_rows(reduction), REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("label_smoothing_loss", denominator, reduction)

    if not _backend.use_library("label_smoothing_loss", student):
        return reference.label_smoothing_loss(
            student,
            target,
            smoothing=smoothing,
            convention=convention,
            ignore_index=ignore_index,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )

    on, off = smoothed_label(student.shape[dim], smoothing, convention)
    loss, _ = ops.label_loss(
        function="label_smoothing_loss",
        student=student,
        target=target,
        on=on,
        off=off,
        ignore_index=ignore_index,
        reduction=over_rows(reduction),
        denominator=denominator,
        dim=dim,
    )
    return loss


def cwtm_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, integer labels in [0, C) or ignore_index
    teacher: Tensor | None = None,  # logits, the shape and device of student
    *,
    confidence: Tensor | None = None,  # row shape, float in [0, 1]
    shared_classes: int | None = None,
    normalize: bool = True,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    group: torch.distributed.ProcessGroup | None = None,
    normalise: bool | None = None,
) -> Tensor:
    r"""Cross entropy with the labels, each row weighted by the teacher's confidence ("by teacher max").

    With `c = max softmax(teacher)` per row, right or wrong, a row's loss is `w * CE(student, target)`,
    `w = c / mean(c)`. For logits `[N, C]` that is::

        c = F.softmax(teacher, -1).amax(-1)
        (c / c.sum() * F.cross_entropy(student, target, reduction="none")).sum()

    in one sweep over each tensor of logits, without any tensor of probabilities. Equal confidences make it
    the mean cross entropy.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [0, C) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN.
        teacher: logits, same shape (but for the classes, with `shared_classes`) and device, any of those dtypes; a
            constant. Either this or `confidence`.
        confidence: the teacher's largest probabilities as they were stored, in [0, 1], a constant.
        shared_classes: the confidence is the largest of so many probabilities, the softmax of the teacher's first
            logits, of which there may then be more or fewer than the student's (padded vocabularies). The cross entropy
            sees all classes of the student.
        normalize: divide confidences by their mean over the rows that are not ignored; else `w = c`, which
            makes the loss, and so the learning rate, smaller by about the mean confidence. If all
            confidences are 0, so is the loss.
        ignore_index: label of rows that drop out of the loss, of its count and of the mean confidence.
        reduction: `"batchmean"` (mean over the rows that are not ignored: the paper's sum with weights of sum
            1; alias `"mean"`), `"sum"` or `"none"` (row shape). A row has one value: `"elementmean"` is
            `"batchmean"`.
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.
        group: processes over whose rows the mean confidence is taken; by default over those of this call.
        normalise: the former name of `normalize`; a FutureWarning.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018,
        https://arxiv.org/abs/1805.04770, equation 10.

    >>> student, target = torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([1, 1])
    >>> cwtm_loss(student, target, confidence=torch.tensor([0.9, 0.6]))
    tensor(1.0387)
    """
    if is_sharded(student):
        return row_loss(cwtm_loss, locals(), "target")
    if (teacher is None) == (confidence is None):
        given = "neither" if teacher is None else "both"
        raise ValueError(f"cwtm_loss: one of teacher and confidence must be given, got {given}")
    if teacher is None:
        dim = _checks.logits_alone("cwtm_loss", student, dim)
    else:
        dim = _checks.pair("cwtm_loss", student, teacher, dim, equal_classes=shared_classes is None)
        if shared_classes is not None:
            shared_classes = _checks.shared_classes("cwtm_loss", shared_classes, student, teacher, dim)
    target = _checks.labels("cwtm_loss", target, student, dim)
    ignore_index = _checks.integer("cwtm_loss", "ignore_index", ignore_index)
    normalize = _checks.normalization("cwtm_loss", normalize, normalise)
    if confidence is not None:
        _checks.confidence("cwtm_loss", confidence, student, target, dim, ignore_index)
    _checks.one_of("cwtm_loss", "reduction", over_rows(reduction), REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("cwtm_loss", denominator, reduction)
    if group is not None:
        _checks.process_group("cwtm_loss", group)

    if not _backend.use_library("cwtm_loss", student):
        return reference.cwtm_loss(
            student,
            target,
            teacher,
            confidence=confidence,
            shared_classes=shared_classes,
            normalize=normalize,
            ignore_index=ignore_index,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
            group=group,
        )

    if teacher is not None and (shared_classes is not None or (group is not None and normalize)):
        _checks.label_range("cwtm_loss", target, student.shape[dim], ignore_index)
        confidence = ops.row_statistics(
            function="cwtm_loss",
            rows=teacher.narrow(dim, 0, shared_classes or student.shape[dim]),
            statistic="confidence",
            dim=dim,
        )
        teacher = None
    if group is not None and normalize:
        confidence = confidence.detach().to(arithmetic(student))
        confidence = confidence_weights(confidence, target != ignore_index, group)
        normalize = False
    loss, _ = ops.label_loss(
        function="cwtm_loss",
        student=student,
        target=target,
        teacher=teacher,
        confidence=confidence,
        normalize=normalize,
        ignore_index=ignore_index,
        reduction=over_rows(reduction),
        denominator=denominator,
        dim=dim,
    )
    return loss
