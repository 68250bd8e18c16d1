"""`kdkernels::row_statistics` for torch: a number per row, without a gradient."""

from .._shared.rows import arithmetic
from .open_op import OpenOp

row_statistics = OpenOp("row_statistics")


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
    return row_statistics(*tensors, statistic, gamma, adjust, ignore_index, dim + 1), 0


row_statistics.register(fake=_shape, vmap=_vmap)
