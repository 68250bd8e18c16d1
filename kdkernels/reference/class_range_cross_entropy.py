"""Cross entropy among some of the classes."""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from .._shared.label_targets import IGNORED, labels_from, over_rows
from .._shared.rows import arithmetic, hard_losses, reduce_rows

__all__ = ["class_range_cross_entropy"]


def class_range_cross_entropy(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    target: Tensor,  # row shape, int64 labels in [start, stop) or ignore_index
    start: int,
    stop: int,
    *,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    _checks.label_range("class_range_cross_entropy", target, stop - start, ignore_index, start)
    dim %= student.dim()
    student = student.narrow(dim, start, stop - start).to(arithmetic(student))
    label = labels_from(target, start, stop, ignore_index)
    losses = hard_losses(student, label, 0.0, IGNORED, dim)
    return reduce_rows(losses, label != IGNORED, None, over_rows(reduction), classes=1, denominator=denominator)
