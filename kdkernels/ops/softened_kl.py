"""Shapes, derivatives and vmap of `kdkernels::softened_kl`.

The forward pass has already written the gradients for an upstream gradient of 1. Backward takes that buffer
out of the graph, multiplies it in place by the upstream gradient (a kernel that finds out on the device that
there is nothing to do where that is 1) and returns it: no memory, no synchronisation.

No autocast rule: the op reads half precision, computes in float32 and returns a float32 loss whatever the
mode. A cast in front of it would only cost a copy of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._names import DIVERGENCES, REDUCTIONS, TEACHER_KINDS

_OP = torch.ops.kdkernels.softened_kl.default
_SCALE = torch.ops.kdkernels.scale_gradient_.default
_TENSORS = 6  # the arguments of the schema begin with so many tensors; the rest are numbers
_CONSTANTS = (None,) * (len(_OP._schema.arguments) - 2)  # gradients of what follows student and teacher
_NONE = REDUCTIONS["none"]
_KIND_OF = {code: name for name, code in TEACHER_KINDS.items()}
_DIVERGENCE_OF = {code: name for name, code in DIVERGENCES.items()}
_REDUCTION_OF = {code: name for name, code in REDUCTIONS.items()}


def softened_kl(
    student: Tensor,
    teacher: Tensor,
    *arguments: Any,  # the rest of the schema in csrc/library.cpp
) -> tuple[Tensor, Tensor]:
    """Loss and parts, by the cheapest form of the op that the context can differentiate."""
    if torch.compiler.is_compiling():
        return _OP(student, teacher, *arguments)[:2]
    if torch._C._are_functorch_transforms_active():
        return _Transformed.apply(student, teacher, *arguments)[:2]
    return _Eager.apply(student, teacher, arguments)


def _op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole output, inside a transform or outside."""
    return (_Transformed.apply if torch._C._are_functorch_transforms_active() else _OP)(*arguments)


# Shapes


@torch.library.register_fake("kdkernels::softened_kl")
def _shapes(student, teacher, target, mask, row_weight, row_temperature, *options):
    *_, reduction, groups, dim, grad_student, grad_teacher = options
    if reduction == _NONE:
        shape = student.shape[:dim] + student.shape[dim + 1 :]
    else:
        shape = (groups,) if groups else ()
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    return (
        student.new_empty(shape, dtype=dtype),
        student.new_empty((0,) if target is None else (2, *shape), dtype=dtype),
        _gradient_like(student, dim) if grad_student else student.new_empty(0),
        _gradient_like(teacher, dim) if grad_teacher else teacher.new_empty(0),
    )


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


# First derivative


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, parts, *gradients = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(parts, *gradients)
    ctx.save_for_backward(*inputs[:_TENSORS])  # for the rare paths alone
    ctx.options = inputs[_TENSORS:]
    ctx.gradients = gradients


def _backward(ctx: Any, upstream: Tensor | None, *_) -> tuple[Tensor | None, ...]:
    return (*_input_gradients(ctx, upstream), *_CONSTANTS)


def _input_gradients(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if upstream is None:
        return None, None
    for_student, for_teacher = wanted = ctx.needs_input_grad[:2]
    has_student, has_teacher = ctx.options[-2:]
    gradients = ctx.gradients
    if gradients is None or for_student > has_student or for_teacher > has_teacher:
        # A second backward over the same graph: the first has given the buffers away.
        gradients = _op(*ctx.saved_tensors, *ctx.options[:-2], *wanted)[2:]
    if torch.is_grad_enabled():
        found = iter(_Derivative.apply(wanted, ctx.options, upstream, *gradients, *ctx.saved_tensors))
        return tuple(next(found) if want else None for want in wanted)
    if in_place := _is_plain(upstream):
        ctx.gradients = None
    return (
        _scaled(gradients[0], upstream, ctx.options, in_place) if for_student else None,
        _scaled(gradients[1], upstream, ctx.options, in_place) if for_teacher else None,
    )


class _Eager(torch.autograd.Function):
    """What register_autograd makes, at half the cost: that goes through Python twice."""

    @staticmethod
    def forward(ctx, student, teacher, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            output = _OP(student, teacher, *arguments)
        _setup_context(ctx, (student, teacher, *arguments), output)
        return output[:2]

    @staticmethod
    def backward(ctx, upstream, _):
        return (*_input_gradients(ctx, upstream), None)


def _is_plain(tensor: Tensor) -> bool:
    """Real memory: neither a tensor being traced (a subclass: torch.compile, export), nor one of a torch.func
    transform, nor a batch of gradients (is_grads_batched=True)."""
    return (
        type(tensor) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def _scaled(gradient: Tensor, upstream: Tensor, options: tuple, in_place: bool) -> Tensor:
    groups, dim = options[-4:-2]
    if groups:  # one number per leading index
        upstream = upstream.reshape(groups, *[1] * (gradient.dim() - 2))
    if in_place and _is_plain(gradient):
        if upstream.dim():
            upstream = upstream.expand(gradient.shape[:dim] + gradient.shape[dim + 1 :])
        # Where the number can be read without waiting, a look at it is cheaper than a call.
        if upstream.dim() or not upstream.is_cpu or upstream.item() != 1.0:
            _SCALE(gradient, upstream, dim)
        return gradient
    if upstream.dim():
        upstream = upstream.unsqueeze(dim)
    return (gradient * upstream).to(gradient.dtype)


# Further derivatives


class _Derivative(torch.autograd.Function):
    """The wanted gradients as a function of the upstream gradient and the inputs. Stands where they may be
    differentiated again (create_graph=True, torch.func); only when they are does the reference run."""

    generate_vmap_rule = True

    @staticmethod
    def forward(wanted, options, upstream, grad_student, grad_teacher, *tensors):
        gradients = (grad_student, grad_teacher)
        return tuple(_scaled(gradients[i], upstream, options, in_place=False) for i in (0, 1) if wanted[i])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.wanted, ctx.options, upstream, _, _, *tensors = inputs
        ctx.save_for_backward(upstream, *tensors)

    @staticmethod
    def backward(ctx, *second):
        upstream, student, teacher, *constants = ctx.saved_tensors

        def loss(student, teacher):
            return _reference(student, teacher, *constants, *ctx.options)

        def first(upstream, student, teacher):
            gradients = torch.func.vjp(loss, student, teacher)[1](upstream)
            return tuple(gradients[i] for i in (0, 1) if ctx.wanted[i])

        by_upstream, by_student, by_teacher = torch.func.vjp(first, upstream, student, teacher)[1](second)
        return (None, None, by_upstream, None, None, by_student, by_teacher, *[None] * (_TENSORS - 2))


def _reference(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    mask: Tensor | None,
    row_weight: Tensor | None,
    row_temperature: Tensor | None,
    *options: Any,
) -> Tensor:
    """The loss of the op by the twins of the functions that call it."""
    *options, groups, dim, _, _ = options
    tensors = (student, teacher, target, mask, row_weight, row_temperature)
    if groups:
        in_dims = tuple(None if tensor is None else 0 for tensor in tensors)
        return torch.func.vmap(lambda *each: _reference(*each, *options, 0, dim - 1, False, False), in_dims)(
            *tensors
        )
    temperature, source, divergence, beta, target_eps, scale_by_t2, *options = options
    kl_weight, ce_weight, label_smoothing, ignore_index, reduction = options
    shared = dict(
        temperature=temperature if row_temperature is None else row_temperature,
        target_eps=target_eps,
        mask=mask,
        row_weight=row_weight,
        reduction=_REDUCTION_OF[reduction],
        dim=dim,
    )
    if target is None:
        return reference.softened_kl(
            student,
            teacher,
            divergence=_DIVERGENCE_OF[divergence],
            beta=beta,
            teacher_kind=_KIND_OF[source],
            scale_by_t2=scale_by_t2,
            **shared,
        )
    return reference.kd_loss(
        student,
        teacher,
        target,
        ce_weight=ce_weight,
        kl_weight=kl_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        **shared,
    )


# vmap


def _vmap(info, in_dims, *arguments):
    """The mapped dimension becomes the first; `groups` tells the op that so many problems lie along it."""
    size = info.batch_size
    *options, reduction, groups, dim, grad_student, grad_teacher = arguments[_TENSORS:]
    tensors = [
        None
        if tensor is None
        else tensor.expand(size, *tensor.shape)
        if at is None
        else tensor.movedim(at, 0)
        for tensor, at in zip(arguments[:_TENSORS], in_dims)
    ]
    if groups:  # mapped twice: the first dimension is a mapped one already, and both become one
        tensors = [None if tensor is None else tensor.flatten(0, 1) for tensor in tensors]
        dim -= 1
    problems = 0 if reduction == _NONE else size * max(groups, 1)
    loss, parts, *gradients = _op(
        *tensors, *options, reduction, problems, dim + 1, grad_student, grad_teacher
    )
    if groups:
        loss = loss.unflatten(0, (size, groups))
        parts = parts.unflatten(1, (size, groups)) if parts.dim() > 1 else parts
        gradients = [g.unflatten(0, (size, groups)) if g.dim() > 1 else g for g in gradients]
    has_parts = arguments[2] is not None
    out_dims = (0, 1 if has_parts else None, 0 if grad_student else None, 0 if grad_teacher else None)
    return (loss, parts, *gradients), out_dims


class _Transformed(torch.autograd.Function):
    """For torch.func, which refuses what register_autograd makes."""

    forward = staticmethod(_OP)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    vmap = staticmethod(_vmap)


# For torch.compile and whoever calls the op itself.
torch.library.register_autograd("kdkernels::softened_kl", _backward, setup_context=_setup_context)
torch.library.register_vmap("kdkernels::softened_kl", _vmap)
