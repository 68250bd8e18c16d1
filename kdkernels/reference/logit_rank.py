"""The place of the labelled class among all, the largest logit first."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._shared.rows import arithmetic

__all__ = ["logit_rank"]


@torch.no_grad()
def logit_rank(
    logits: Tensor,  # [..., C], any float dtype, classes along `dim`
    target: Tensor,  # row shape, int64 labels in [0, C)
    *,
    dim: int = -1,
) -> Tensor:
    dim %= logits.dim()
    classes = logits.shape[dim]
    _checks.class_range("logit_rank", target, classes)
    logits, label = logits.to(arithmetic(logits)), target.unsqueeze(dim)
    valid = (target >= 0) & (target < classes)
    own = logits.gather(dim, label.clamp(0, classes - 1))
    number = torch.arange(classes, device=logits.device).view(-1, *[1] * (logits.dim() - 1 - dim))
    # Not `logits > own`: a NaN stands before the label, and everything before a label of NaN.
    ahead = torch.where(number < label, ~(logits < own), ~(logits <= own)) & (number != label)
    return torch.where(valid, ahead.sum(dim), -1)  # no device can raise
