"""`kdkernels::row_statistics` for torch: a number per row, without a gradient."""

from __future__ import annotations

from torch import Tensor

from .._names import ADJUSTMENTS, STATISTICS
from .._shared.rows import arithmetic
from .fused_loss import explained
from .open_op import OpenOp
from .row_loss import check_labels_of

__all__ = ["row_statistics"]

_OP = OpenOp("row_statistics")


def row_statistics(
    *,
    function: str,  # the public one, named in errors
    rows: Tensor,  # logits of the student; for "confidence" of the teacher
    teacher: Tensor | None = None,
    target: Tensor | None = None,  # row shape, int64
    statistic: str,
    gamma: float = 1.0,
    adjust: str = "none",
    ignore_index: int = -100,
    dim: int,  # >= 0
) -> Tensor:
    """The number of each row that the mean of the batch is taken of."""
    arguments = (rows, teacher, target, STATISTICS[statistic], gamma, ADJUSTMENTS[adjust], ignore_index, dim)
    return explained(_OP, arguments, check_labels_of, function, target, rows, dim, ignore_index)


def _shape(rows, teacher, target, statistic, gamma, adjust, ignore_index, dim):
    dtype = arithmetic(rows) if teacher is None else arithmetic(rows, teacher)
    return rows.new_empty(rows.shape[:dim] + rows.shape[dim + 1 :], dtype=dtype)


def _vmap(info, in_dims, *arguments):
    *tensors, statistic, gamma, adjust, ignore_index, dim = arguments
    tensors = [
        None
        if tensor is None
        else tensor.expand(info.batch_size, *tensor.shape)
        if at is None
        else tensor.movedim(at, 0)
        for tensor, at in zip(tensors, in_dims)
    ]
    return _OP(*tensors, statistic, gamma, adjust, ignore_index, dim + 1), 0


_OP.register(fake=_shape, vmap=_vmap)
