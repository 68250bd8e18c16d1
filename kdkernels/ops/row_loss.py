"""Shapes, derivatives and vmap of the ops that go row by row: what all of them share.

Their schemas (csrc/library.cpp) have one form: tensors, the first of them differentiable; options, which
vmap does not map; then `reduction, groups, dim` and for each differentiable tensor whether its gradient is
wanted. They return loss, parts, those gradients, and further numbers per row.

The forward pass has already written the gradients for an upstream gradient of 1. Backward takes that buffer
out of the graph, multiplies it in place by the upstream gradient (a kernel that finds out on the device that
there is nothing to do where that is 1) and returns it: no memory, no synchronisation.

No autocast rule: the ops read half precision, compute in float32 and return a float32 loss whatever the
mode. A cast in front of them would only cost a copy of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from .._names import REDUCTIONS

_SCALE = torch.ops.kdkernels.scale_gradient_.default
_NONE = REDUCTIONS["none"]
_NAME_OF_REDUCTION = {code: name for name, code in REDUCTIONS.items()}


class RowLoss:
    """One such op, as torch is to see it. Called with the arguments of its schema, it returns what is not a
    gradient, by the cheapest form of the op that the context can differentiate."""

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],  # (*tensors, *options, reduction name, dim) -> loss, by the twin
        *,
        differentiable: int = 1,  # tensors, from the first on
        row_outputs: int = 0,  # after the gradients
    ):
        self.op = getattr(torch.ops.kdkernels, name).default
        arguments = self.op._schema.arguments
        names = [argument.name for argument in arguments]
        self.tensors = len(list(takewhile(lambda argument: "Tensor" in str(argument.type), arguments)))
        self.differentiable = differentiable
        self.first_row_output = 2 + differentiable if row_outputs else None
        self.target = names.index("target") if "target" in names else None
        self.teacher = names.index("teacher") if "teacher" in names else None
        self.parts = names.index("return_parts") if "return_parts" in names else None
        self.constants = (None,) * (len(names) - differentiable)
        self._reference = reference

        qualified = f"kdkernels::{name}"
        torch.library.register_fake(qualified)(self._shapes)
        # For torch.compile and whoever calls the op itself.
        torch.library.register_autograd(qualified, self._backward, setup_context=self.setup_context)
        torch.library.register_vmap(qualified, self.vmap)

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return self.without_gradients(self.op(*arguments))
        if torch._C._are_functorch_transforms_active():
            return self.without_gradients(_Transformed.apply(self, *arguments))
        if True not in arguments[-self.differentiable :]:
            with torch._C._AutoDispatchBelowAutograd():
                return self.without_gradients(self.op(*arguments))
        return _Eager.apply(self, arguments, *arguments[: self.differentiable])

    def whole(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The whole output, inside a transform or outside."""
        if torch._C._are_functorch_transforms_active():
            return _Transformed.apply(self, *arguments)
        return self.op(*arguments)

    def without_gradients(self, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.first_row_output is None:
            return output[:2]
        return (*output[:2], *output[self.first_row_output :])

    # Shapes

    def _shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        reduction, groups, dim, *wanted = self.layout(arguments)
        student = arguments[0]
        rows = student.shape[:dim] + student.shape[dim + 1 :]
        shape = rows if reduction == _NONE else (groups,) if groups else ()
        logits = [student] if self.teacher is None else [student, arguments[self.teacher]]
        is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in logits)
        dtype = torch.float64 if is_double else torch.float32
        gradients = [
            _gradient_like(tensor, dim) if want else tensor.new_empty(0)
            for tensor, want in zip(arguments, wanted)
        ]
        return (
            student.new_empty(shape, dtype=dtype),
            student.new_empty((2, *shape) if self.has_parts(arguments) else (0,), dtype=dtype),
            *gradients,
            *[student.new_empty(rows, dtype=dtype)] * (self.first_row_output is not None),
        )

    def layout(self, arguments: tuple) -> tuple:
        """reduction, groups, dim and the wanted gradients."""
        return arguments[-3 - self.differentiable :]

    def has_parts(self, arguments: tuple) -> bool:
        asked = self.parts is None or arguments[self.parts]
        return bool(asked and self.target is not None and arguments[self.target] is not None)

    def upstream_shape(self, options: tuple) -> tuple[int, int]:
        """Number of losses along dimension 0 (0: one, or one per row) and the class dimension."""
        reduction, groups, dim, *_ = self.layout(options)
        return 0 if reduction == _NONE else groups, dim

    # First derivative

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        _, *others = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*others)
        ctx.save_for_backward(*inputs[: self.tensors])  # for the rare paths alone
        ctx.options = inputs[self.tensors :]
        ctx.gradients = output[2 : 2 + self.differentiable]

    def _backward(self, ctx: Any, upstream: Tensor | None, *_) -> tuple[Tensor | None, ...]:
        return (*self.input_gradients(ctx, upstream, ctx.needs_input_grad), *self.constants)

    def input_gradients(
        self, ctx: Any, upstream: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        wanted = wanted[: self.differentiable]
        if upstream is None:
            return (None,) * self.differentiable
        gradients, has = ctx.gradients, ctx.options[-self.differentiable :]
        if gradients is None or any(want > given for want, given in zip(wanted, has)):
            # A second backward over the same graph: the first has given the buffers away.
            options = (*ctx.options[: -self.differentiable], *wanted)
            gradients = self.whole(*ctx.saved_tensors, *options)[2 : 2 + self.differentiable]
        if torch.is_grad_enabled():
            found = iter(
                _Derivative.apply(self, wanted, ctx.options, upstream, *gradients, *ctx.saved_tensors)
            )
            return tuple(next(found) if want else None for want in wanted)
        if in_place := _is_plain(upstream):
            ctx.gradients = None
        groups, dim = self.upstream_shape(ctx.options)
        return tuple(
            _scaled(gradient, upstream, groups, dim, in_place) if want else None
            for gradient, want in zip(gradients, wanted)
        )

    # Further derivatives

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        """The loss of the op by the twins of the functions that call it."""
        reduction, groups, dim, *_ = self.layout(options)
        if groups:
            in_dims = tuple(None if tensor is None else 0 for tensor in tensors)
            inner = (*options[: -3 - self.differentiable], reduction, 0, dim - 1, *[False] * self.differentiable)
            return torch.func.vmap(lambda *each: self.reference(each, inner), in_dims)(*tensors)
        numbers = options[: -3 - self.differentiable]
        return self._reference(*tensors, *numbers, _NAME_OF_REDUCTION[reduction], dim)

    # vmap

    def vmap(self, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
        """The mapped dimension becomes the first; `groups` tells the op that so many problems lie along it."""
        size = info.batch_size
        reduction, groups, dim, *wanted = self.layout(arguments)
        options = arguments[self.tensors : -3 - self.differentiable]
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
        problems = size * max(groups, 1)
        loss, parts, *others = self.whole(*tensors, *options, reduction, problems, dim + 1, *wanted)
        given = [*wanted, *[True] * (len(others) - len(wanted))]
        if groups:
            loss = loss.unflatten(0, (size, groups))
            parts = parts.unflatten(1, (size, groups)) if parts.dim() > 1 else parts
            others = [o.unflatten(0, (size, groups)) if has else o for o, has in zip(others, given)]
        out_dims = (0, 1 if self.has_parts(arguments) else None, *[0 if has else None for has in given])
        return (loss, parts, *others), out_dims


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
        elif tensor.stride(d) != step * size:
            uniform = False
        size *= tensor.shape[d]
    return size, step, uniform


@torch.library.register_fake("kdkernels::scale_gradient_")
def _scale_shapes(gradient, upstream, dim):
    return None


def _is_plain(tensor: Tensor) -> bool:
    """Real memory: neither a tensor being traced (a subclass: torch.compile, export), nor one of a torch.func
    transform, nor a batch of gradients (is_grads_batched=True)."""
    return (
        type(tensor) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def _is_one(upstream: Tensor | None) -> bool:
    """Whether it is the number 1, as far as that can be seen without waiting for a device."""
    return (
        upstream is not None
        and upstream.is_cpu
        and upstream.dim() == 0
        and _is_plain(upstream)
        and upstream.item() == 1.0
    )


def _if_any(gradient: Tensor, wanted: bool) -> Tensor | None:
    return gradient if wanted else None


def _scaled(gradient: Tensor, upstream: Tensor, groups: int, dim: int, in_place: bool) -> Tensor:
    if groups:  # one number per leading index
        upstream = upstream.reshape(groups, *[1] * (gradient.dim() - 2))
    if in_place and _is_plain(gradient):
        if upstream.dim():
            upstream = upstream.expand(gradient.shape[:dim] + gradient.shape[dim + 1 :])
        _SCALE(gradient, upstream, dim)
        return gradient
    if upstream.dim():
        upstream = upstream.unsqueeze(dim)
    return (gradient * upstream).to(gradient.dtype)


class _Eager(torch.autograd.Function):
    """What register_autograd makes, at half the cost: that goes through Python twice."""

    @staticmethod
    def forward(ctx, loss, arguments, *differentiable):
        with torch._C._AutoDispatchBelowAutograd():
            output = loss.op(*arguments)
        result = loss.without_gradients(output)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*result[1:])
        ctx.save_for_backward(*arguments[: loss.tensors])  # for the rare paths alone
        ctx.loss = loss
        ctx.options = arguments[loss.tensors :]
        ctx.gradients = output[2 : 2 + loss.differentiable]
        return result

    @staticmethod
    def backward(ctx, upstream, *_):
        if _is_one(upstream) and ctx.gradients is not None and not torch.is_grad_enabled():
            # The commonest case, in as few steps of Python as it takes: at small batches they are the time it takes.
            gradients, ctx.gradients = ctx.gradients, None
            return (None, None, *map(_if_any, gradients, ctx.options[-len(gradients) :]))
        return (None, None, *ctx.loss.input_gradients(ctx, upstream, ctx.needs_input_grad[2:]))


class _Transformed(torch.autograd.Function):
    """For torch.func, which refuses what register_autograd makes."""

    @staticmethod
    def forward(loss, *arguments):
        return loss.op(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.loss, *arguments = inputs
        ctx.loss.setup_context(ctx, tuple(arguments), output)

    @staticmethod
    def backward(ctx, upstream, *_):
        gradients = ctx.loss.input_gradients(ctx, upstream, ctx.needs_input_grad[1:])
        return (None, *gradients, *ctx.loss.constants)

    @staticmethod
    def vmap(info, in_dims, loss, *arguments):
        return loss.vmap(info, in_dims[1:], *arguments)


class _Derivative(torch.autograd.Function):
    """The wanted gradients as a function of the upstream gradient and the inputs. Stands where they may be
    differentiated again (create_graph=True, torch.func); only when they are does the reference run."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss, wanted, options, upstream, *tensors):
        groups, dim = loss.upstream_shape(options)
        return tuple(
            _scaled(gradient, upstream, groups, dim, in_place=False)
            for gradient, want in zip(tensors, wanted)
            if want
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.loss, ctx.wanted, ctx.options, upstream, *tensors = inputs
        ctx.save_for_backward(upstream, *tensors[ctx.loss.differentiable :])

    @staticmethod
    def backward(ctx, *second):
        upstream, *tensors = ctx.saved_tensors
        loss, count = ctx.loss, ctx.loss.differentiable
        constants = tensors[count:]

        def value(*inputs):
            return loss.reference((*inputs, *constants), ctx.options)

        def first(upstream, *inputs):
            gradients = torch.func.vjp(value, *inputs)[1](upstream)
            return tuple(gradient for gradient, want in zip(gradients, ctx.wanted) if want)

        by_upstream, *by_inputs = torch.func.vjp(first, upstream, *tensors[:count])[1](second)
        return (None, None, None, by_upstream, *[None] * count, *by_inputs, *[None] * len(constants))
