"""Cross entropy with joint labels of a class and a transform."""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from .._shared.label_targets import IGNORED, joint_labels, over_rows
from .._shared.rows import arithmetic, hard_losses, reduce_rows

__all__ = ["joint_cross_entropy"]


def joint_cross_entropy(
    joint_logits: Tensor,  # [transforms * B, transforms * N], any float dtype
    target: Tensor,  # [B], int64 labels in [0, N) or ignore_index
    *,
    transforms: int = 4,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    classes = joint_logits.shape[1] // transforms
    _checks.label_range("joint_cross_entropy", target, classes, ignore_index)
    label = joint_labels(target, transforms, classes, ignore_index)
    losses = hard_losses(joint_logits.to(arithmetic(joint_logits)), label, 0.0, IGNORED, 1)
    return reduce_rows(losses, label != IGNORED, None, over_rows(reduction), classes=1, denominator=denominator)
