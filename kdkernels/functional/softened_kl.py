"""Divergences between softened class distributions, and the classic distillation loss."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._names import DIVERGENCES, REDUCTIONS, TEACHER_KINDS
from .._shards import row_loss, row_loss_with_labels


def softened_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape and device; what `teacher_kind` says
    *,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions or the row shape
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    teacher_kind: str = "logits",
    standardize: bool = False,
    shared_classes: int | None = None,
    target_eps: float = 0.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    r"""Divergence of the student's softened class distribution from the teacher's, per row, reduced.

    With `q = softmax(student / T)`, `p = softmax(teacher / T) + target_eps` and per row `w`::

        forward    w T^2 sum_c p_c (log p_c - log m_c),  m = skew p + (1 - skew) q
        reverse    w T^2 sum_c q_c (log q_c - log m_c),  m = (1 - skew) p + skew q
        jsd        w T^2 [beta KL(p || m) + (1 - beta) KL(q || m)],  m = beta p + (1 - beta) q
        tvd        w T^2 sum_c |p_c - q_c| / 2

    Without `skew` the first is, for logits `[N, C]`::

        T * T * F.kl_div(F.log_softmax(student / T, -1), F.softmax(teacher / T, -1), reduction="batchmean")

    in one sweep over memory, which leaves the gradient and nothing else.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `-inf` is a class of probability 0.
        teacher: same shape (but for the classes, with `shared_classes`) and device, any of those dtypes. Its gradient
            is computed where it requires one.
        temperature: T, finite and > 0; a number, a tensor of one number, or a float tensor in row shape (the shape of
            the logits without `dim`). A tensor is a constant.
        divergence: `"forward"`, `"reverse"`, `"jsd"`, `"tvd"` (total variation; its gradient is 0 in a class where
            `p = q`), or `"cross_entropy"`, which is `soft_cross_entropy`.
        beta: weight of the teacher in the mixture of `"jsd"`, in (0, 1); 0.5 is the symmetric divergence. At 0 and 1,
            which are an error, `"jsd"` is 0 everywhere: for what other libraries compute there give `"forward"` or
            `"reverse"`.
        skew: in [0, 1), for `"forward"` and `"reverse"` alone. Above 0 the loss is finite, at most `-log(skew)` before
            the factors and without `target_eps`, even where one of the two has probability 0; 0.1 is the paper's.
        teacher_kind: `"logits"`, `"log_probs"` or `"probs"`. The latter two are taken as already softened and
            are not renormalised; T then applies to the student alone.
        standardize: replace the logits of both, row by row, by `(z - mean) / (s + 1e-7)` first, with the sample
            standard deviation s; `teacher_kind="logits"` alone. The student then matches the teacher's logits up to
            their scale and offset. A constant row becomes 0 and has gradient 0, and so has one of one class. A logit of
            `-inf` remains a class of probability 0 and counts neither in the mean nor in s.
        shared_classes: compare only so many classes, the first of both, whose widths may then differ (padded
            vocabularies). Softmax, `standardize` and `"elementmean"` go over these alone; gradients beyond are 0.
        target_eps: added to every target probability, >= 0, without renormalising.
        scale_by_t2: multiply by T^2, which keeps the size of the gradient when T changes.
        mask: bool, row shape. False rows are not computed and not counted.
        row_weight: float, row shape. Multiplies a row's loss and does not change the count.
        reduction: `"batchmean"` (sum over rows / counted rows, alias `"mean"`), `"sum"`, `"none"` (row shape)
            or `"elementmean"` (sum / (counted rows * C), the `"mean"` of `torch.nn.functional.kl_div`).
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531, section 2. `"jsd"` and `"reverse"`: Agarwal et al., "On-Policy
        Distillation of Language Models", 2024, https://arxiv.org/abs/2306.13649, equation 1 and section 2. `skew`: Ko
        et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024,
        https://arxiv.org/abs/2402.03898, section 3.1. `"tvd"`: Wen et al., "f-Divergence Minimization for
        Sequence-Level Knowledge Distillation", ACL 2023, https://arxiv.org/abs/2307.15190.
        `standardize`: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024,
        https://arxiv.org/abs/2403.01993, and the authors' code.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    >>> softened_kl(student, teacher, temperature=2.0)
    tensor(1.2806)
    >>> softened_kl(student, student, temperature=2.0)
    tensor(0.)
    >>> softened_kl(student, teacher, divergence="tvd")
    tensor(0.5752)
    """
    if is_sharded(student):
        return row_loss(softened_kl, locals(), "mask")
    return _divergence_loss(
        function="softened_kl",
        student=student,
        teacher=teacher,
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        skew=skew,
        teacher_kind=teacher_kind,
        standardize=standardize,
        shared_classes=shared_classes,
        target_eps=target_eps,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )


def soft_cross_entropy(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape and device; what `teacher_kind` says
    *,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions or the row shape
    teacher_kind: str = "logits",
    shared_classes: int | None = None,
    target_eps: float = 0.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    r"""Cross entropy of the student's softened class distribution under the teacher's, per row, reduced.

    With `q = softmax(student / T)`, `p = softmax(teacher / T) + target_eps` and per row `w`::

        - w T^2 sum_c p_c log q_c

    That is `T * T * F.cross_entropy(student / T, F.softmax(teacher / T, -1))` for logits `[N, C]`. To a
    constant teacher it has the gradient of `softened_kl`; the value is larger by T^2 times the teacher's
    entropy.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `-inf` is a class of probability 0.
        teacher: same shape (but for the classes, with `shared_classes`) and device, any of those dtypes. Its gradient
            is computed where it requires one.
        temperature: T, finite and > 0; a number, a tensor of one number, or a float tensor in row shape (the shape of
            the logits without `dim`). A tensor is a constant.
        teacher_kind: `"logits"`, `"log_probs"` or `"probs"`. The latter two are taken as already softened and
            are not renormalised; T then applies to the student alone.
        shared_classes: compare only so many classes, the first of both, whose widths may then differ (padded
            vocabularies). Softmax and `"elementmean"` go over these alone; gradients beyond are 0.
        target_eps: added to every target probability, >= 0, without renormalising.
        scale_by_t2: multiply by T^2, which keeps the size of the gradient when T changes.
        mask: bool, row shape. False rows are not computed and not counted.
        row_weight: float, row shape. Multiplies a row's loss and does not change the count.
        reduction: `"batchmean"` (sum over rows / counted rows, alias `"mean"`), `"sum"`, `"none"` (row shape)
            or `"elementmean"` (sum / (counted rows * C)).
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531, section 2.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.25, 0.5, 0.25]])
    >>> soft_cross_entropy(student, teacher, teacher_kind="probs")
    tensor(1.4076)
    """
    if is_sharded(student):
        return row_loss(soft_cross_entropy, locals(), "mask")
    return _divergence_loss(
        function="soft_cross_entropy",
        student=student,
        teacher=teacher,
        temperature=temperature,
        divergence="cross_entropy",
        beta=0.5,
        skew=0.0,
        teacher_kind=teacher_kind,
        standardize=False,
        shared_classes=shared_classes,
        target_eps=target_eps,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )


def kd_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape and device, logits
    target: Tensor,  # row shape, integer labels in [0, C) or ignore_index; or floats in the shape of student
    *,
    temperature: float | Tensor = 4.0,  # > 0; a tensor has no dimensions or the row shape
    divergence: str = "forward",
    beta: float = 0.5,
    skew: float = 0.0,
    standardize: bool = False,
    shared_classes: int | None = None,
    ce_weight: float = 1.0,
    kl_weight: float = 1.0,
    label_smoothing: float = 0.0,
    target_eps: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool; the KL term only
    mask_ignored: bool = False,
    row_weight: Tensor | None = None,  # row shape, float; the KL term only
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Knowledge distillation: cross entropy with the labels plus the softened divergence from the teacher.

    With `q = softmax(student / T)` and `p = softmax(teacher / T) + target_eps`::

        ce_weight * CE(student, target) + kl_weight * T^2 D(p, q)

    where D is that of `softened_kl`, by default `sum_c p_c (log p_c - log q_c)`.

    For logits `[N, C]` that is::

        kl = F.kl_div(F.log_softmax(student / T, -1), F.softmax(teacher / T, -1), reduction="batchmean")
        ce_weight * F.cross_entropy(student, target) + kl_weight * T * T * kl

    in one sweep over memory for both temperatures, which leaves the gradient and nothing else.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `-inf` is a class of probability 0.
        teacher: logits, same shape (but for the classes, with `shared_classes`) and device, any of those dtypes. Its
            gradient is computed where it requires one.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [0, C) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN. Or floats of any dtype in the shape of student, the
            probabilities of the classes (mixup), which need not add up to 1: as
            `torch.nn.functional.cross_entropy` takes them, but that a class of probability 0 adds 0 even to a student
            that excludes it. Their gradient is computed where they require one.
        temperature: T of the divergence, finite and > 0; a number, a tensor of one number, or a float tensor in row
            shape. A tensor is a constant. 4 is the usual choice on CIFAR (Tian, Krishnan, Isola 2020).
        divergence, beta, skew, standardize: D, as in `softened_kl`. The cross entropy sees the student's logits as they
            are.
        shared_classes: D compares only so many classes, the first of both, whose widths may then differ (padded
            vocabularies). The cross entropy sees all classes of the student, and beyond these the gradient comes from
            it alone.
        ce_weight, kl_weight: finite and >= 0. A term of weight 0 adds exactly 0, even where it is infinite.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, in [0, 1].
        target_eps: added to every probability of the teacher, >= 0, without renormalising.
        ignore_index: label of rows that drop out of the hard-label term and of its count.
        mask: bool, row shape. The divergence of False rows is not computed and not counted.
        mask_ignored: rows whose label is ignored drop out of the divergence and of its count, too: the padding of
            sequences. Not possible with a target of floats, which ignores no row.
        row_weight: float, row shape. Multiplies a row's divergence and does not change the count.
        reduction: `"batchmean"` (alias `"mean"`) and `"elementmean"` take each term's mean over its own
            counted rows, the latter dividing the divergence by C as well; `"sum"` and `"none"` (row shape)
            apply to both terms.
        denominator: what both means divide by in place of their counted rows, such as the rows of all micro-batches
            and processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.
        return_parts: also return `{"ce", "kl"}`, detached and on the device: each term before its weight,
            reduced like the loss, T^2 included.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531, section 2.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    >>> loss, parts = kd_loss(student, teacher, torch.tensor([2]), temperature=2.0, return_parts=True)
    >>> loss, parts
    (tensor(1.6882), {'ce': tensor(0.4076), 'kl': tensor(1.2806)})
    """
    if is_sharded(student):
        return row_loss_with_labels(kd_loss, locals())
    dim = _checks.pair("kd_loss", student, teacher, dim, equal_classes=shared_classes is None)
    if shared_classes is not None:
        shared_classes = _checks.shared_classes("kd_loss", shared_classes, student, teacher, dim)
    target = _checks.labels_or_probabilities("kd_loss", target, student, dim)
    ignore_index = _checks.integer("kd_loss", "ignore_index", ignore_index)
    temperature = _checks.temperature("kd_loss", temperature, student, dim)
    _checks.one_of("kd_loss", "divergence", divergence, DIVERGENCES)
    beta = _checks.mixture_weight("kd_loss", divergence, beta)
    skew = _checks.skew("kd_loss", divergence, skew)
    standardize = _checks.flag("kd_loss", "standardize", standardize)
    ce_weight = _checks.not_negative("kd_loss", "ce_weight", ce_weight)
    kl_weight = _checks.not_negative("kd_loss", "kl_weight", kl_weight)
    label_smoothing = _checks.unit_interval("kd_loss", "label_smoothing", label_smoothing)
    target_eps = _checks.not_negative("kd_loss", "target_eps", target_eps)
    mask_ignored = _checks.flag("kd_loss", "mask_ignored", mask_ignored)
    if mask_ignored and target.is_floating_point():
        raise ValueError(
            "kd_loss: mask_ignored=True needs labels, of which some may be ignored, got a target of floats; use mask"
        )
    return_parts = _checks.flag("kd_loss", "return_parts", return_parts)
    _checks.one_of("kd_loss", "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("kd_loss", denominator, reduction)
    if mask is not None:
        _checks.row_mask("kd_loss", mask, student, dim)
    if row_weight is not None:
        _checks.row_weight("kd_loss", row_weight, student, dim)

    by_twin = target.requires_grad  # probabilities, of which the op has no gradient
    if not _backend.use_library("kd_loss", student) or by_twin:
        return reference.kd_loss(
            student,
            teacher,
            target,
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            skew=skew,
            standardize=standardize,
            shared_classes=shared_classes,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            label_smoothing=label_smoothing,
            target_eps=target_eps,
            ignore_index=ignore_index,
            mask=mask,
            mask_ignored=mask_ignored,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
            return_parts=return_parts,
        )

    loss, parts = ops.softened_kl(
        function="kd_loss",
        student=student,
        teacher=teacher,
        target=target,
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        skew=skew,
        standardize=standardize,
        shared_classes=shared_classes,
        target_eps=target_eps,
        kl_weight=kl_weight,
        ce_weight=ce_weight,
        label_smoothing=label_smoothing,
        return_parts=return_parts,
        ignore_index=ignore_index,
        mask=mask,
        mask_ignored=mask_ignored,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )
    return (loss, {"ce": parts[1], "kl": parts[0]}) if return_parts else loss


def _divergence_loss(
    *,
    function: str,
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor,
    divergence: str,
    beta: float,
    skew: float,
    teacher_kind: str,
    standardize: bool,
    shared_classes: int | None,
    target_eps: float,
    scale_by_t2: bool,
    mask: Tensor | None,
    row_weight: Tensor | None,
    reduction: str,
    denominator: float | Tensor | None,
    dim: int,
) -> Tensor:
    dim = _checks.pair(function, student, teacher, dim, equal_classes=shared_classes is None)
    if shared_classes is not None:
        shared_classes = _checks.shared_classes(function, shared_classes, student, teacher, dim)
    temperature = _checks.temperature(function, temperature, student, dim)
    _checks.one_of(function, "divergence", divergence, DIVERGENCES)
    beta = _checks.mixture_weight(function, divergence, beta)
    skew = _checks.skew(function, divergence, skew)
    _checks.one_of(function, "teacher_kind", teacher_kind, TEACHER_KINDS)
    standardize = _checks.standardized(function, teacher_kind, standardize)
    target_eps = _checks.not_negative(function, "target_eps", target_eps)
    scale_by_t2 = _checks.flag(function, "scale_by_t2", scale_by_t2)
    _checks.one_of(function, "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator, reduction)
    if mask is not None:
        _checks.row_mask(function, mask, student, dim)
    if row_weight is not None:
        _checks.row_weight(function, row_weight, student, dim)

    if not _backend.use_library(function, student):
        return reference.softened_kl(
            student,
            teacher,
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            skew=skew,
            teacher_kind=teacher_kind,
            standardize=standardize,
            shared_classes=shared_classes,
            target_eps=target_eps,
            scale_by_t2=scale_by_t2,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )

    loss, _ = ops.softened_kl(
        function=function,
        student=student,
        teacher=teacher,
        temperature=temperature,
        teacher_kind=teacher_kind,
        divergence=divergence,
        beta=beta,
        skew=skew,
        standardize=standardize,
        shared_classes=shared_classes,
        target_eps=target_eps,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )
    return loss
