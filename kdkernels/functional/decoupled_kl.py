"""Decoupled knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._names import REDUCTIONS
from .._shards import row_loss
from .._shared.label_targets import over_rows


def decoupled_kl(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape and device, logits
    target: Tensor,  # row shape, integer labels in [0, C) or ignore_index
    *,
    temperature: float | Tensor = 4.0,  # > 0; a tensor has no dimensions or the row shape
    alpha: float = 1.0,
    beta: float = 8.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""The divergence from the teacher in two terms: the label against all others, and the others among themselves.

    With `q = softmax(student / T)`, `p = softmax(teacher / T)`, the label y and, for the other classes,
    `qhat_c = q_c / (1 - q_y)` and `phat_c = p_c / (1 - p_y)`::

        w T^2 [alpha TCKD + beta NCKD]
        TCKD = p_y log(p_y / q_y) + (1 - p_y) log((1 - p_y) / (1 - q_y))
        NCKD = sum_{c != y} phat_c log(phat_c / qhat_c)

    `softened_kl` is `TCKD + (1 - p_y) NCKD`: where the teacher is sure of the label, it says little about the other
    classes. Here that part keeps its weight. For logits `[N, C]` the loss is::

        is_label = F.one_hot(target, C).bool()
        q, p = F.softmax(student / T, -1), F.softmax(teacher / T, -1)
        two = lambda x: torch.stack([x[is_label], x.masked_fill(is_label, 0).sum(-1)], -1)
        log_qhat, phat = ((x / T).masked_fill(is_label, -1e9) for x in (student, teacher))
        tckd = F.kl_div(two(q).log(), two(p), reduction="batchmean")
        nckd = F.kl_div(F.log_softmax(log_qhat, -1), F.softmax(phat, -1), reduction="batchmean")
        T * T * (alpha * tckd + beta * nckd)

    in one sweep over memory, which leaves the gradient and nothing else.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `-inf` is a class of probability 0. With
            C = 2 NCKD is 0, and with C = 1 the loss is 0.
        teacher: logits, same shape and device, any of those dtypes. Its gradient is computed where it requires one.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [0, C) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN.
        temperature: T, finite and > 0; a number, a tensor of one number, or a float tensor in row shape. A tensor is
            a constant. 4 is the paper's for CIFAR-100.
        alpha, beta: weights of TCKD and NCKD, finite and >= 0. The paper's alpha is 1; its beta depends on the teacher,
            up to 8, and is larger for one that is surer of the labels. A term of weight 0 adds exactly 0, even where
            it is infinite.
        ignore_index: label of rows that drop out of both terms and of their count.
        mask: bool, row shape. False rows are not computed and not counted.
        row_weight: float, row shape. Multiplies both terms of a row and does not change the count.
        reduction: `"batchmean"` (sum over rows / counted rows, alias `"mean"`), `"sum"` or `"none"` (row shape). A row
            has one value: `"elementmean"` is `"batchmean"`.
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.
        return_parts: also return `{"tckd", "nckd"}`, both with T^2 and reduced like the loss, before their weights,
            without gradients.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`; with
        `return_parts` `(loss, parts)`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022,
        https://arxiv.org/abs/2203.08679, equations 5 to 7.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    >>> decoupled_kl(student, teacher, torch.tensor([2]), temperature=1.0)
    tensor(0.2142)
    """
    if is_sharded(student):
        return row_loss(decoupled_kl, locals(), "mask and target")
    dim = _checks.logits_alone("decoupled_kl", student, dim)
    _checks.float_tensor("decoupled_kl", "teacher", teacher)
    _checks.same_shape("decoupled_kl", student, teacher)
    _checks.same_device("decoupled_kl", "teacher", teacher, student)
    target = _checks.labels("decoupled_kl", target, student, dim)
    temperature = _checks.temperature("decoupled_kl", temperature, student, dim)
    alpha = _checks.not_negative("decoupled_kl", "alpha", alpha)
    beta = _checks.not_negative("decoupled_kl", "beta", beta)
    ignore_index = _checks.integer("decoupled_kl", "ignore_index", ignore_index)
    if mask is not None:
        _checks.row_mask("decoupled_kl", mask, student, dim)
    if row_weight is not None:
        _checks.row_weight("decoupled_kl", row_weight, student, dim)
    _checks.one_of("decoupled_kl", "reduction", reduction, REDUCTIONS)
    reduction = over_rows(reduction)
    if denominator is not None:
        denominator = _checks.denominator("decoupled_kl", denominator, reduction)
    return_parts = _checks.flag("decoupled_kl", "return_parts", return_parts)
    options = dict(
        temperature=temperature,
        alpha=alpha,
        beta=beta,
        ignore_index=ignore_index,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
        return_parts=return_parts,
    )
    if not _backend.use_library("decoupled_kl", student):
        return reference.decoupled_kl(student, teacher, target, **options)
    loss, parts = ops.decoupled_kl(function="decoupled_kl", student=student, teacher=teacher, target=target, **options)
    return (loss, {"tckd": parts[1], "nckd": parts[0]}) if return_parts else loss
