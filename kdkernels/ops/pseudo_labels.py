"""`kdkernels::pseudo_labels` for torch: a class and a number per row, without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .._shared.rows import arithmetic
from .open_op import OpenOp

__all__ = ["pseudo_labels"]

_OP = OpenOp("pseudo_labels")


def pseudo_labels(
    *,
    logits: Tensor,
    threshold: float | Tensor,  # a tensor: [C]
    temperature: float,
    ignore_index: int,
    dim: int,
) -> tuple[Tensor, Tensor]:
    """The arguments of the op from those of the function, which has checked them."""
    thresholds = None
    if isinstance(threshold, Tensor):
        thresholds, threshold = threshold.to(arithmetic(logits)), 0.0
    return _OP(logits, thresholds, threshold, temperature, ignore_index, dim)


def _shapes(logits, thresholds, threshold, temperature, ignore_index, dim):
    rows = logits.shape[:dim] + logits.shape[dim + 1 :]
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows, dtype=arithmetic(logits))


def _vmap(info, in_dims, logits, thresholds, threshold, temperature, ignore_index, dim):
    numbers = threshold, temperature, ignore_index
    if in_dims[1] is None:
        return _OP(logits.movedim(in_dims[0], 0), thresholds, *numbers, dim + 1), (0, 0)
    # The op knows one threshold per class.
    problems = logits.expand(info.batch_size, *logits.shape) if in_dims[0] is None else logits.movedim(in_dims[0], 0)
    found = [_OP(each, own, *numbers, dim) for each, own in zip(problems, thresholds.unbind(in_dims[1]))]
    return tuple(map(torch.stack, zip(*found))), (0, 0)


_OP.register(fake=_shapes, vmap=_vmap)
