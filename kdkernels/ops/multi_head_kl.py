"""`kdkernels::multi_head_kl` for torch: see fused_loss.py.

The op takes lists, one tensor per head, and autograd takes tensors alone. So what FusedLoss does is done for the arguments
of all lists one after the other, and there is one `_Heads` for each number of heads. Below they are called flat, and those
of the schema nested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._shared.denominator import as_denominator
from .._shared.rows import arithmetic
from .fused_loss import SCALE, FusedLoss, in_units, is_plain, mapped_problems, times
from .open_op import OpenOp

_OP = OpenOp("multi_head_kl")
_SCALE_ALL = torch.ops.kdkernels.scale_gradients_.default
_MOST_AT_ONCE = 4  # most_gradients of csrc/gradient_list.h


def multi_head_kl(
    *,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    temperature: float,
    weights: Sequence[float] | Tensor,
    denominator: float | Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss, and the heads before their weights."""
    first, count, differentiable = students[0], len(students), torch.is_grad_enabled()
    weights_tensor = denominator_tensor = None
    if isinstance(weights, Tensor):
        weights_tensor = weights.to(arithmetic(*students, *teachers)).contiguous()
        weights = [1.0] * count
    if isinstance(denominator, Tensor):
        denominator, denominator_tensor = None, as_denominator(denominator, first)
    wanted = [differentiable and student.requires_grad for student in students]
    numbers = (weights_tensor, denominator_tensor, temperature, 0.0 if denominator is None else denominator)
    if torch.compiler.is_compiling():
        return _OP([*students], [*teachers], *numbers, [*weights], wanted)[:2]
    return _of(count)(*students, *teachers, *numbers, *weights, *wanted)


def _flat(values: Sequence) -> tuple:
    return tuple(one for value in values for one in (value if isinstance(value, (list, tuple)) else (value,)))


class _FlatOp:
    """The op of so many heads."""

    def __init__(self, count: int):
        self.count = count

    def nested(self, flat: Sequence) -> tuple:
        count = self.count
        students, teachers, rest = flat[:count], flat[count : 2 * count], flat[2 * count :]
        numbers, weights, wanted = rest[:4], rest[4 : 4 + count], rest[4 + count :]
        return [*students], [*teachers], *numbers, [*weights], [*wanted]

    def op(self, *flat: Any) -> tuple:
        return _flat(_OP.op(*self.nested(flat)))

    def at_once(self, keys: Any, *flat: Any) -> tuple:
        return _flat(_OP.op._handle.redispatch_boxed(keys, *self.nested(flat)))

    def __call__(self, *flat: Any) -> tuple:
        return _flat(_OP(*self.nested(flat)))

    def read(self, flat: Sequence) -> tuple:
        return _flat(_OP.read(self.nested(flat)))


class _Heads(FusedLoss):
    """The losses of so many heads. They return loss, heads, the gradients and the units of these."""

    def __init__(self, count: int):
        self.name = "multi_head_kl"
        self.count = self.differentiable = count
        self.call = _FlatOp(count)
        self.op, self.at_once = self.call.op, self.call.at_once
        self.tensors = 2 * count + 2
        self.flags = slice(-count, None)
        self.gradients = slice(2, 3 + count)  # with their units
        self.before, self.after = slice(1, 2), slice(3 + count, None)
        self.constants = (None,) * (3 * count + 4)

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        students, wanted = arguments[: self.count], arguments[self.flags]
        first, dtype = students[0], arithmetic(*arguments[: 2 * self.count])
        kept = sum(map(in_units, students, wanted))
        return (
            first.new_empty((), dtype=dtype),
            first.new_empty(self.count, dtype=dtype),
            *[student.new_empty(student.shape if want else 0) for student, want in zip(students, wanted)],
            first.new_empty((kept, first.shape[:-1].numel()), dtype=dtype) if kept else None,
        )

    def for_one(self, gradients: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...] | None:
        return super().for_one(gradients, wanted) if gradients[-1] is None else None  # no units

    def scaled(
        self,
        gradients: tuple[Tensor, ...],  # with their units
        wanted: tuple[bool, ...],
        upstream: Tensor,
        options: tuple,
        in_place: bool,
    ) -> tuple[Tensor | None, ...]:
        *gradients, units = gradients
        row_units = iter(() if units is None else units)  # of the float16 gradients that there are
        factors = [
            (upstream * next(row_units)).reshape(gradient.shape[:-1])
            if in_units(gradient, gradient.shape != (0,))
            else upstream
            for gradient in gradients
        ]
        if not in_place or not all(map(is_plain, gradients)):
            return tuple(times(*each, -1) if want else None for *each, want in zip(gradients, factors, wanted))
        together = []
        for gradient, factor, want in zip(gradients, factors, wanted):
            if want and factor is not upstream:
                SCALE(gradient, factor, gradient.dim() - 1)
            elif want:
                together.append(gradient)
        for begin in range(0, len(together), _MOST_AT_ONCE):
            _SCALE_ALL(together[begin : begin + _MOST_AT_ONCE], upstream)
        return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        students, teachers, weights_tensor, denominator_tensor, temperature, denominator, weights, _ = self.call.nested(
            (*tensors, *options)
        )
        return reference.multi_head_kl(
            students,
            teachers,
            temperature=temperature,
            weights=weights if weights_tensor is None else weights_tensor,
            denominator=(denominator or None) if denominator_tensor is None else denominator_tensor,
        )

    def vmap(self, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
        return self.mapped(self.whole, info, in_dims, *arguments)

    def mapped(self, call: Callable, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
        """One call per mapped problem."""
        options, wanted = arguments[self.tensors :], arguments[self.flags]
        problems = mapped_problems(info, in_dims, arguments[: self.tensors])
        outputs = zip(*[call(*problem, *options) for problem in problems])
        given = (True, True, *wanted, any(map(in_units, arguments, wanted)))
        results = tuple(torch.stack(each) if has else each[0] for each, has in zip(outputs, given, strict=True))
        return results, tuple(0 if has else None for has in given)


_LOSSES: dict[int, _Heads] = {}


def _of(count: int) -> _Heads:
    if count not in _LOSSES:
        _LOSSES[count] = _Heads(count)
    return _LOSSES[count]


# For torch.compile and whoever calls the op itself: nested.


def _nested_output(output: Sequence) -> tuple:
    loss, heads, *gradients, units = output
    return loss, heads, gradients, units


def _shapes(students: list[Tensor], *others: Any) -> tuple:
    return _nested_output(_of(len(students)).shapes(*_flat((students, *others))))


def _vmap(info: Any, in_dims: tuple, students: list[Tensor], *others: Any) -> tuple[tuple, tuple]:
    loss = _of(len(students))
    # The dimensions of tensors alone: those of options are not always lists where these are.
    results, out_dims = loss.mapped(loss.call, info, _flat(in_dims[:4]), *_flat((students, *others)))
    return _nested_output(results), _nested_output(out_dims)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    students, *_, weights, _ = inputs
    ctx.loss = _of(len(students))
    ctx.constants = ([None] * len(students), None, None, None, None, _like(weights), None)
    ctx.loss.setup_context(ctx, _flat(inputs), _flat(output))


def _like(weights: list) -> list | None:
    """Gradients of the weights: of a list of tensors, as the open op has it, one each."""
    return [None] * len(weights) if isinstance(weights[0], Tensor) else None


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple:
    # Who calls the op itself has the stored gradients too: they stay as they are.
    wanted = tuple(ctx.needs_input_grad[0])
    return [*ctx.loss.input_gradients(ctx, upstream, wanted, may_overwrite=False)], *ctx.constants


_OP.register(fake=_shapes, vmap=_vmap, backward=_backward, setup_context=_setup_context)
