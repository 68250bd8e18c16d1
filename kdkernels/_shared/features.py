"""Rows of features at length 1, and keys by number."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_NORM = 1e-8
_HALF = (torch.float16, torch.bfloat16)


def unit_rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    # A short row is divided by a constant. Its norm is kept out of the derivatives, the second of which would be NaN.
    rows = features.to(dtype)
    squares = (rows * rows).sum(1, keepdim=True)
    short = squares <= LEAST_NORM**2
    if features.dtype in _HALF:
        rows = torch.where(short, rows.detach(), rows)
    return rows / torch.where(short, 1, squares).sqrt().masked_fill(short, LEAST_NORM)


def usable_keys(positive: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Columns [Q, 1] that can index, some key standing for those out of range; and which are in range."""
    valid = (positive >= 0) & (positive < keys)
    return torch.where(valid, positive, 0).unsqueeze(1), valid
