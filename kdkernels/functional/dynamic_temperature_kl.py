"""Distillation with repaired targets and a temperature per row."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._names import ADJUSTMENTS, NORMALIZATIONS, REDUCTIONS, TEMPERATURE_MODES
from .._shards import row_loss_with_labels
from .._shared.row_statistics import constant_temperature, row_temperatures
from .._shared.rows import arithmetic


def dynamic_temperature_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape and device, logits
    target: Tensor,  # row shape, integer labels in [0, C) or ignore_index
    *,
    temperature: float | Tensor = 4.0,  # > 0; a tensor has no dimensions
    shared_classes: int | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    mode: str = "flsw",
    adjust: str = "none",
    smoothing: float = 0.1,
    normalize: str | None = None,
    t_min: float | None = 1.0,
    scale_by_t2: bool = True,
    ce_weight: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool; the KL term only
    row_weight: Tensor | None = None,  # row shape, float; the KL term only
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Knowledge adjustment (KA) and dynamic temperature distillation (DTD): hard rows get a sharper target,
    and a teacher that mistakes the label is corrected.

    With a hardness `w_i` per row, its mean over the batch, and `A` the adjustment::

        T_i = max(temperature + (mean w - w_i) * beta, t_min)
        T_i^2 * KL(A(softmax(teacher_i / T_i)) || softmax(student_i / T_i)) + ce_weight * CE(student, target)

    `mode` chooses the hardness::

        "flsw"     w = (1 - cos(student, teacher)) ^ gamma, of the raw logits, in [0, 2^gamma]
        "cwsm"     w = 1 / (max softmax(student) + 1e-3), in [1, C] about
        "const"    T_i = temperature

    and `adjust` what becomes of a target whose largest entry is not the label's::

        "none"     nothing
        "ps"       the two entries are exchanged
        "lsr"      1 - s + s / C on the label, s / C elsewhere, whatever T_i, s = smoothing

    Hardness and temperatures are constants, and so is the teacher: `softmax(student_i / T_i)` alone is
    differentiated.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `-inf` is a class of probability 0,
            but the cosine of `"flsw"` needs finite logits.
        teacher: logits, same shape (but for the classes, with `shared_classes`) and device, any of those dtypes.
            `"flsw"` looks at what `"ps"` made of them.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [0, C) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN in whatever depends on it.
        temperature: finite and > 0, or a constant tensor of one number; the mean of the T_i where none is clamped.
        shared_classes: hardness, adjustment and KL see only so many classes, the first of both, whose widths may then
            differ (padded vocabularies). A row whose label is beyond them is not adjusted. The cross entropy sees all
            classes of the student.
        beta: slope, finite and >= 0; 0 is a constant temperature. Of order 1 for `"flsw"`, 4 / C for
            `"cwsm"`, and ten times that or more with `normalize="l1"`.
        gamma: exponent of `"flsw"`, finite and >= 0.
        mode, adjust: above.
        smoothing: s, in [0, 1]. The targets of `"lsr"` do not depend on T_i, but their rows are multiplied by
            its square like all others: at a temperature of 20 they outweigh them.
        normalize: `"l1"` divides each w_i by the sum over the batch first.
        t_min: lower bound of the T_i, finite and > 0. None: not clamped, and a row with T_i <= 0 is NaN. Then
            T_i > 0 is certain only for `temperature > beta * 2^gamma` (`"flsw"`) or
            `temperature > beta * C / (1 + 0.001 C)` (`"cwsm"`), or for `temperature > beta` with
            `normalize="l1"`.
        scale_by_t2: multiply each row by T_i^2, which keeps the size of its gradient.
        ce_weight: of the cross entropy at temperature 1, finite and >= 0; 0 is the paper's.
        ignore_index: label of rows that are not adjusted and drop out of the cross entropy and its count.
            Their KL remains.
        mask: bool, row shape. The KL of False rows is not computed and not counted, neither in the loss nor
            in the mean of w.
        row_weight: float, row shape. Multiplies a row's KL and does not change the count.
        reduction: `"batchmean"` (alias `"mean"`) and `"elementmean"` take each term's mean over its own
            counted rows, the latter dividing the KL by C as well; `"sum"` and `"none"` (row shape) apply to
            both terms.
        denominator: what both means divide by in place of their counted rows, such as the rows of all micro-batches
            and processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.
        return_parts: also return `{"kl", "ce", "temperature"}`, detached and on the device: each term before
            its weight, reduced like the loss, and the T_i in row shape (`temperature` where `mask` is False).
        group: processes over whose rows the mean of w is taken; by default over those of this call.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Wen, Lai, Qian, "Preparing Lessons: Improve Knowledge Distillation with Better Supervision",
        Neurocomputing 454, 2021, https://arxiv.org/abs/1911.07471, sections 3.2 and 3.3.

    >>> student, teacher = torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([[1.0, 3.0], [0.0, 1.0]])
    >>> loss, parts = dynamic_temperature_kl(student, teacher, torch.tensor([1, 0]), return_parts=True)
    >>> loss, parts["temperature"]
    (tensor(0.6172), tensor([4.4949, 3.5051]))
    """
    if is_sharded(student):
        return row_loss_with_labels(dynamic_temperature_kl, locals())
    dim = _checks.pair("dynamic_temperature_kl", student, teacher, dim, equal_classes=shared_classes is None)
    if shared_classes is not None:
        shared_classes = _checks.shared_classes("dynamic_temperature_kl", shared_classes, student, teacher, dim)
    target = _checks.labels("dynamic_temperature_kl", target, student, dim)
    ignore_index = _checks.integer("dynamic_temperature_kl", "ignore_index", ignore_index)
    temperature = _checks.one_temperature("dynamic_temperature_kl", temperature, student, "student")
    beta = _checks.not_negative("dynamic_temperature_kl", "beta", beta)
    gamma = _checks.not_negative("dynamic_temperature_kl", "gamma", gamma)
    _checks.one_of("dynamic_temperature_kl", "mode", mode, TEMPERATURE_MODES)
    _checks.one_of("dynamic_temperature_kl", "adjust", adjust, ADJUSTMENTS)
    smoothing = _checks.unit_interval("dynamic_temperature_kl", "smoothing", smoothing)
    _checks.one_of("dynamic_temperature_kl", "normalize", normalize, NORMALIZATIONS)
    if t_min is not None:
        t_min = _checks.positive("dynamic_temperature_kl", "t_min", t_min)
    scale_by_t2 = _checks.flag("dynamic_temperature_kl", "scale_by_t2", scale_by_t2)
    ce_weight = _checks.not_negative("dynamic_temperature_kl", "ce_weight", ce_weight)
    return_parts = _checks.flag("dynamic_temperature_kl", "return_parts", return_parts)
    _checks.one_of("dynamic_temperature_kl", "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("dynamic_temperature_kl", denominator, reduction)
    if mask is not None:
        _checks.row_mask("dynamic_temperature_kl", mask, student, dim)
    if row_weight is not None:
        _checks.row_weight("dynamic_temperature_kl", row_weight, student, dim)
    if group is not None:
        _checks.process_group("dynamic_temperature_kl", group)

    if not _backend.use_library("dynamic_temperature_kl", student):
        return reference.dynamic_temperature_kl(
            student,
            teacher,
            target,
            temperature=temperature,
            shared_classes=shared_classes,
            beta=beta,
            gamma=gamma,
            mode=mode,
            adjust=adjust,
            smoothing=smoothing,
            normalize=normalize,
            t_min=t_min,
            scale_by_t2=scale_by_t2,
            ce_weight=ce_weight,
            ignore_index=ignore_index,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
            return_parts=return_parts,
            group=group,
        )

    whole, labels = student, target
    if shared_classes is not None:
        _checks.label_range("dynamic_temperature_kl", target, student.shape[dim], ignore_index)
        student, teacher = (logits.narrow(dim, 0, shared_classes) for logits in (student, teacher))
        target = torch.where((target >= shared_classes) & (target < whole.shape[dim]), ignore_index, target)
    row_temperature = None
    if mode == "const":
        if isinstance(temperature, Tensor):  # the op takes a number, or one per row
            row_temperature = constant_temperature(temperature, target, arithmetic(student, teacher))
    elif group is not None or isinstance(temperature, Tensor):
        hardness = ops.row_statistics(
            function="dynamic_temperature_kl",
            rows=student.detach(),
            teacher=teacher,
            target=target,
            statistic=mode,
            gamma=gamma,
            adjust=adjust,
            ignore_index=ignore_index,
            dim=dim,
        )
        hardness = hardness.to(arithmetic(student, teacher))
        row_temperature = row_temperatures(hardness, mask, temperature, beta, normalize, t_min, group)
    loss, parts, row_temperature = ops.dynamic_temperature_kl(
        function="dynamic_temperature_kl",
        student=student,
        teacher=teacher,
        target=target,
        temperature=temperature,
        row_temperature=row_temperature,
        beta=beta,
        gamma=gamma,
        mode=mode,
        adjust=adjust,
        smoothing=smoothing,
        normalize=normalize,
        t_min=t_min,
        scale_by_t2=scale_by_t2,
        ce_weight=ce_weight if shared_classes is None else 0.0,
        return_parts=return_parts,
        ignore_index=ignore_index,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )
    if shared_classes is not None and (ce_weight or return_parts):
        ce, _ = ops.label_loss(
            function="dynamic_temperature_kl",
            student=whole,
            target=labels,
            ignore_index=ignore_index,
            denominator=denominator,
            reduction="batchmean" if reduction == "elementmean" else reduction,
            dim=dim,
        )
        loss = loss + ce_weight * ce if ce_weight else loss
        parts = (parts[0], ce.detach()) if return_parts else parts
    return (loss, {"kl": parts[0], "ce": parts[1], "temperature": row_temperature}) if return_parts else loss
