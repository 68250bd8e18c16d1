"""Cross entropy among some of the classes."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._names import REDUCTIONS
from .._shards import row_loss
from .._shared.label_targets import over_rows


def class_range_cross_entropy(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, integer labels in [start, stop) or ignore_index
    start: int,
    stop: int,
    *,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    r"""Cross entropy of the classes `start` to `stop - 1` alone, as if the network had no others.

    For logits `[N, C]` that is::

        F.cross_entropy(student[:, start:stop], target - start)

    but labels count over all classes, and nothing is copied. The other columns are not read, and their gradient is
    exactly 0: what a network of all tasks has learned about other tasks' classes stays as it is.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also
            be there with size 1), in [start, stop) or `ignore_index`. Another label is a ValueError on the CPU; on
            CUDA, where asking would stall, it makes its row NaN.
        start, stop: the range, 0 <= start < stop <= C.
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
        The loss of the current task's classes in class-incremental learning: Ahn, Kwak, Lim, Bang, Kim, Moon, "SS-IL: Separated
        Softmax for Incremental Learning", ICCV 2021, https://arxiv.org/abs/2003.13947; used by Ji, Li, Wang, Zhang,
        "Complementary Calibration: Boosting General Continual Learning with Collaborative Distillation and Self-Supervision",
        https://arxiv.org/abs/2109.02426.

    >>> class_range_cross_entropy(torch.tensor([[9.0, 1.0, 2.0, 9.0]]), torch.tensor([2]), 1, 3)
    tensor(0.3133)
    """
    if is_sharded(student):
        return row_loss(class_range_cross_entropy, locals(), "target")
    function = "class_range_cross_entropy"
    dim = _checks.logits_alone(function, student, dim)
    target = _checks.labels(function, target, student, dim)
    start, stop = _checks.class_span(function, start, stop, student, dim)
    ignore_index = _checks.integer(function, "ignore_index", ignore_index)
    _checks.one_of(function, "reduction", reduction, REDUCTIONS)
    reduction = over_rows(reduction)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator, reduction)

    if not _backend.use_library(function, student):
        return reference.class_range_cross_entropy(
            student,
            target,
            start,
            stop,
            ignore_index=ignore_index,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )
    loss, _ = ops.label_loss(
        function=function,
        student=student,
        target=target,
        start=start,
        stop=stop,
        ignore_index=ignore_index,
        denominator=denominator,
        reduction=reduction,
        dim=dim,
    )
    return loss
