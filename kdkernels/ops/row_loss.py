"""Shapes, gradients and vmap of the ops that go row by row: what all of them share.

Their schemas are those of fused_loss.py, with `reduction, groups, dim` as the last options. They return loss,
parts, the gradients, the units of these, and further numbers per row; None for what is not wanted.

A float16 gradient comes in units of its row (float16_factor in csrc/row_scales.h): a loss scale that arrived after it was
rounded could not bring back what float16 cannot hold. It is multiplied by upstream gradient and unit in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._names import REDUCTIONS
from .._shared.rows import arithmetic
from .fused_loss import SCALE, FusedLoss, in_units, is_plain, times

_NONE = REDUCTIONS["none"]


class RowLoss(FusedLoss):
    """One such op."""

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],  # by the twin: tensors and options by name, without groups and flags -> loss
        *,
        differentiable: int = 1,  # tensors, from the first on
        row_outputs: int = 0,  # after the gradients
    ):
        super().__init__(name, reference, differentiable=differentiable, first_gradient=2)
        self.gradients = slice(2, 2 + 2 * differentiable)  # with their units
        self.after = slice(self.gradients.stop, None)
        self.row_outputs = row_outputs

    # Shapes

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        given, wanted = self.named(arguments), arguments[self.flags]
        student, teacher, groups, dim = given["student"], given.get("teacher"), given["groups"], given["dim"]
        rows = student.shape[:dim] + student.shape[dim + 1 :]
        shape = rows if given["reduction"] == _NONE else (groups,) if groups else ()
        dtype = arithmetic(student) if teacher is None else arithmetic(student, teacher)
        return (
            student.new_empty(shape, dtype=dtype),
            student.new_empty((2, *shape), dtype=dtype) if _has_parts(given) else None,
            *[_gradient_like(tensor, dim) if want else None for tensor, want in zip(arguments, wanted)],
            *[student.new_empty(rows, dtype=dtype) if has else None for has in map(in_units, arguments, wanted)],
            *[student.new_empty(rows, dtype=dtype)] * self.row_outputs,
        )

    # Derivatives

    def for_one(self, gradients: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...] | None:
        count = self.differentiable
        return gradients[:count] if gradients[count] is None and gradients[-1] is None else None  # no units

    def scaled(
        self,
        gradients: tuple[Tensor, ...],  # with their units
        wanted: tuple[bool, ...],
        upstream: Tensor,
        options: tuple,
        in_place: bool,
    ) -> tuple[Tensor | None, ...]:
        groups, dim = options[self.option["groups"]], options[self.option["dim"]]
        if options[self.option["reduction"]] == _NONE:  # one loss per row, all groups in one dimension of the rows
            groups = 0
        return tuple(
            _scaled(gradient, unit, upstream, groups, dim, in_place) if want else None
            for gradient, unit, want in zip(gradients, gradients[self.differentiable :], wanted)
        )

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        groups, dim = options[self.option["groups"]], options[self.option["dim"]]
        if groups:
            in_dims = tuple(None if tensor is None else 0 for tensor in tensors)
            inner = self.changed(options, groups=0, dim=dim - 1)
            return torch.func.vmap(lambda *each: self.reference(each, inner), in_dims)(*tensors)
        return super().reference(tensors, options)

    # vmap

    def vmap(self, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
        """The mapped dimension becomes the first; `groups` tells the op that so many problems lie along it."""
        size, options = info.batch_size, arguments[self.tensors :]
        groups, dim = options[self.option["groups"]], options[self.option["dim"]]
        tensors = [
            None
            if tensor is None
            else tensor.expand(size, *tensor.shape)
            if at is None
            else tensor.movedim(at, 0)
            for tensor, at in zip(arguments[: self.tensors], in_dims)
        ]
        if groups:  # mapped twice: the first dimension is a mapped one already, and both become one
            tensors = [None if tensor is None else tensor.flatten(0, 1) for tensor in tensors]
            dim -= 1
        options = self.changed(options, groups=size * max(groups, 1), dim=dim + 1)
        output = self.whole(*tensors, *options)
        mapped = (0, 1, *[0] * (len(output) - 2))  # parts lie before it
        out_dims = tuple(None if each is None else at for each, at in zip(output, mapped))
        if groups:
            output = tuple(each if at is None else each.unflatten(at, (size, groups)) for each, at in zip(output, out_dims))
        return output, out_dims


def check_labels_of(function: str, target: Tensor | None, logits: Tensor, dim: int, ignore_index: int) -> None:
    """`check_labels` where all classes of the logits are possible, which are counted only then."""
    check_labels(function, target, logits.shape[dim], ignore_index)


def check_labels(function: str, target: Tensor | None, classes: int, ignore_index: int, first: int = 0) -> None:
    """Raises the ValueError of an op that has refused its labels."""
    if target is not None:
        _checks.label_range(function, target, classes, ignore_index, first)


def _has_parts(given: dict[str, Any]) -> bool:
    has_hard_term = given.get("target") is not None or given.get("target_probs") is not None
    return has_hard_term and given["return_parts"]


def _gradient_like(logits: Tensor, dim: int) -> Tensor:
    """In the memory order of the logits where that is dense: `allocate_gradient` in csrc/stable.h."""
    outer, outer_stride, outer_uniform = _merged(logits, 0, dim)
    inner, inner_stride, inner_uniform = _merged(logits, dim + 1, logits.dim())
    classes, class_stride = logits.shape[dim], logits.stride(dim)
    outer_dense = outer_uniform and (outer == 1 or outer_stride == classes * inner)
    rows_last = class_stride == inner and (inner == 1 or inner_stride == 1)
    channels_last = class_stride == 1 and (inner == 1 or inner_stride == classes)
    if outer_dense and inner_uniform and (rows_last or channels_last):
        return logits.new_empty_strided(logits.shape, logits.stride())
    return logits.new_empty(logits.shape)


def _merged(tensor: Tensor, begin: int, end: int) -> tuple[int, int, bool]:
    """Size and stride of several neighbouring dimensions as one, and whether one stride can walk them."""
    size, step, uniform = 1, 1, True
    for d in reversed(range(begin, end)):
        if tensor.shape[d] == 1:
            continue
        if size == 1:
            step = tensor.stride(d)
        elif tensor.stride(d) != step * size and tensor.numel() > 0:
            uniform = False
        size *= tensor.shape[d]
    return size, step, uniform


def _scaled(gradient: Tensor, unit: Tensor | None, upstream: Tensor, groups: int, dim: int, in_place: bool) -> Tensor:
    if groups:  # one number per leading index
        upstream = upstream.reshape(groups, *[1] * (gradient.dim() - 2))
    if unit is not None:
        upstream = upstream * unit
    if in_place and is_plain(gradient):
        if upstream.dim():
            upstream = upstream.expand(gradient.shape[:dim] + gradient.shape[dim + 1 :])
        SCALE(gradient, upstream, dim)
        return gradient
    return times(gradient, upstream, dim)
