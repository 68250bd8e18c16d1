"""Derivatives of the ops that compute a loss and its gradients in one call: what all of them share.

Their schemas (csrc/library.cpp) have one form: tensors, the first of them differentiable; options, which
vmap does not map; and for each differentiable tensor, last, whether its gradient is wanted. They return the
loss, what else belongs to it, those gradients, and whatever comes after them. An argument has the name that the
public functions give it, and an option that has names there is an integer here (`OPTIONS` of _names.py).

One function per op, beside the op and of the same name, turns what a public function has checked into these arguments.
It alone knows their order, and takes all by keyword.

The forward pass has already written the gradients for an upstream gradient of 1. Backward takes that buffer
out of the graph, multiplies it in place by the upstream gradient (in a kernel that reads this on the device and
returns at once where it is 1) and returns it: no memory, no synchronisation.

The gradient of a float16 tensor may be kept in float32 (`kept_dtype`): a loss scale is part of the upstream gradient,
and without it small numbers are 0 in float16. Autograd rounds what backward returns to the dtype of the
tensor, once.

No autocast rule: the ops read half precision, compute in float32 and return a float32 loss whatever the
mode. A cast in front of them would only cost a copy of what they read.

No forward-mode derivatives: the reference has them, and runs where they may be taken (`_backend.use_library`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from .._backend import forward_mode, has_tangent
from .._names import OPTIONS, name_of
from .._shared.modes import savable
from .open_op import OpenOp

# Looked up once, since every call needs them.
_len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack
_len_torch_function_stack = torch._C._len_torch_function_stack
_profiler_enabled = torch._C._autograd._profiler_enabled
_is_grad_enabled = torch.is_grad_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_CPU, _CUDA = (torch._C.DispatchKeySet(key) for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA))

SCALE = torch.ops.kdkernels.scale_gradient_.default


class FusedLoss:
    """One such op with its derivatives. Called with the arguments of its schema, it returns what is not a
    gradient, by the cheapest form of the op that the context can differentiate.

    A family says what its ops look like: `shapes`, `for_one`, `scaled`, `reference`, and `vmap` where all
    mapped problems are one call.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Tensor],  # by the twin: tensors and options by name, without the flags -> loss
        *,
        differentiable: int,  # tensors, from the first on
        first_gradient: int,  # in the output
    ):
        self.name = name
        self.call = OpenOp(name)  # in graphs and transforms
        self.op = self.call.op
        self.at_once = self.op._handle.redispatch_boxed
        arguments = self.op._schema.arguments
        self.names = [argument.name for argument in arguments]
        self.tensors = len(list(takewhile(lambda argument: "Tensor" in str(argument.type), arguments)))
        self.option = {name: at for at, name in enumerate(self.names[self.tensors :])}  # its place among the options
        self.differentiable = differentiable
        self.flags = slice(-differentiable, None)  # which gradients are wanted, at the end of the options
        self.gradients = slice(first_gradient, first_gradient + differentiable)  # and what `scaled` needs beside them
        self.before, self.after = slice(1, first_gradient), slice(self.gradients.stop, None)  # returned with the loss
        self.without_names = {*self.names[self.flags], "groups"}  # arguments that no twin has
        self.constants = (None,) * (len(arguments) - differentiable)
        self._reference = reference

        # Derivatives for torch.compile and whoever calls the op itself.
        self.call.register(
            fake=self.shapes, vmap=self.vmap, backward=self._backward, setup_context=self.setup_context
        )

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return self.without_gradients(self.call(*arguments))
        if _are_transforms_active():
            return self.without_gradients(_Transformed.apply(self, *arguments))
        return self.eager(arguments, True in arguments[self.flags])

    def eager(self, arguments: tuple, differentiable: bool) -> tuple[Tensor, ...]:
        """Outside of transforms and graphs: computed first, then put into the graph."""
        output = self.kernel(arguments)
        loss = output[0]
        if differentiable:
            try:
                loss = _Eager.apply((self, arguments, output), *arguments[: self.differentiable])
            except RuntimeError:
                if not any_from_inference(arguments):  # testing for it beforehand would make every call slower
                    raise
                arguments, output = all_savable(arguments), (loss.detach(), *output[1:])
                loss = _Eager.apply((self, arguments, output), *arguments[: self.differentiable])
        return (loss, *output[self.before], *output[self.after])

    def kernel(self, arguments: tuple) -> tuple[Tensor | None, ...]:
        """The op below autograd. Its kernel is called directly where nothing can intercept the call: no mode, no profiler,
        no tensor subclass, no pending negation. A small batch feels the cost of the dispatcher
        (benchmarks/overhead.py)."""
        if not (_len_torch_dispatch_stack() or _len_torch_function_stack() or _profiler_enabled()):
            for tensor in arguments[: self.tensors]:
                if tensor is not None and (type(tensor) is not Tensor or tensor.is_neg()):
                    break
            else:
                if arguments[0].is_cpu:
                    return self.at_once(_CPU, *arguments)
                if arguments[0].is_cuda:
                    return self.at_once(_CUDA, *arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*arguments)

    def whole(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The whole output, inside a transform or outside."""
        if _are_transforms_active():
            return _Transformed.apply(self, *arguments)
        return self.call(*arguments)

    def named(self, tensors: Sequence, options: Sequence = ()) -> dict[str, Any]:
        """The arguments by name."""
        return dict(zip(self.names, (*tensors, *options), strict=True))

    def changed(self, options: tuple, **changes: Any) -> tuple:
        """Options, some of them others."""
        return tuple(changes.get(name, options[at]) for name, at in self.option.items())

    def without_gradients(self, output: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return (output[0], *output[self.before], *output[self.after])

    # What a family says

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The output, empty."""
        raise NotImplementedError

    @property
    def stored(self) -> int:
        """How many tensors of the output backward begins with."""
        return self.gradients.stop - self.gradients.start

    def for_one(self, gradients: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...] | None:
        """Those for an upstream gradient of 1; None if they are not there as they are."""
        return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))

    def scaled(
        self,
        gradients: tuple[Tensor, ...],
        wanted: tuple[bool, ...],
        upstream: Tensor,
        options: tuple,
        in_place: bool,
    ) -> tuple[Tensor | None, ...]:
        """Those wanted, times the upstream gradient."""
        raise NotImplementedError

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        """The loss of the op by the twins of the functions that call it."""
        given = self.named(tensors, options)
        for name in self.without_names:
            given.pop(name, None)
        return self._reference(
            **{name: name_of(name, value) if name in OPTIONS else value for name, value in given.items()}
        )

    def vmap(self, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
        """One call per mapped problem, for families whose problems are work enough for a call of their own."""
        options = arguments[self.tensors :]
        problems = mapped_problems(info, in_dims, arguments[: self.tensors])
        outputs = zip(*[self.whole(*problem, *options) for problem in problems])
        given = (*[True] * self.gradients.start, *options[self.flags])
        results = tuple(torch.stack(each) if has else each[0] for each, has in zip(outputs, given))
        return results, tuple(0 if has else None for has in given)

    # First derivative

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        _, *others = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[each for each in others if each is not None])
        ctx.save_for_backward(*all_savable(inputs[: self.tensors]))  # for the rare paths alone
        ctx.options = inputs[self.tensors :]
        ctx.gradients = output[self.gradients]

    def _backward(self, ctx: Any, upstream: Tensor | None, *_) -> tuple[Tensor | None, ...]:
        # A caller of the op itself holds the stored gradients, too, so they are not overwritten.
        gradients = self.input_gradients(ctx, upstream, ctx.needs_input_grad, may_overwrite=False)
        return (*gradients, *self.constants)

    def input_gradients(
        self, ctx: Any, upstream: Tensor | None, wanted: tuple[bool, ...], may_overwrite: bool = True
    ) -> tuple[Tensor | None, ...]:
        wanted = wanted[: self.differentiable]
        if upstream is None:
            return (None,) * self.differentiable
        refuse_tangent(self.name, upstream)
        gradients, has = ctx.gradients, ctx.options[self.flags]
        if gradients is None or any(want > given for want, given in zip(wanted, has)):
            # A second backward over the same graph: the first has given the buffers away.
            gradients = self.computed_again(ctx.saved_tensors, ctx.options, upstream, wanted)
        if torch.is_grad_enabled():
            found = iter(
                _Derivative.apply(self, wanted, ctx.options, upstream, *gradients, *ctx.saved_tensors)
            )
            return tuple(next(found) if want else None for want in wanted)
        if in_place := may_overwrite and is_plain(upstream):
            ctx.gradients = None
        return self.scaled(gradients, wanted, upstream, ctx.options, in_place)

    def computed_again(
        self, tensors: tuple, options: tuple, upstream: Tensor, wanted: tuple[bool, ...]
    ) -> tuple[Tensor, ...]:
        """The gradients that `scaled` is to multiply by the upstream gradient."""
        return self.whole(*tensors, *options[: -self.differentiable], *wanted)[self.gradients]


def explained(op: Callable, arguments: tuple, check: Callable[..., None], *details: Any) -> Any:
    """`op(*arguments)`. The kernels of the CPU refuse a label or an index that is out of range; how their exception
    arrives depends on the version of torch. `check(*details)` then raises the ValueError that names function and value."""
    try:
        return op(*arguments)
    except (RuntimeError, ValueError):
        check(*details)
        raise


@torch.library.register_fake("kdkernels::scale_gradient_")
def _scale_shapes(gradient, upstream, dim):
    return None


def mapped_problems(info: Any, in_dims: tuple, tensors: tuple) -> zip:
    """The tensors of each problem that vmap maps over."""
    return zip(
        *[
            [tensor] * info.batch_size if at is None else tensor.unbind(at)
            for tensor, at in zip(tensors, in_dims)
        ]
    )


def any_from_inference(arguments: tuple) -> bool:
    return any(isinstance(each, Tensor) and each.is_inference() for each in arguments)


def all_savable(arguments: tuple) -> tuple:
    return tuple(savable(each) if isinstance(each, Tensor) else each for each in arguments)


def refuse_tangent(name: str, *upstream: Tensor | None) -> None:
    """The backward pass of an op, too, would treat what it is given as a constant."""
    if any(each is not None and has_tangent(each) for each in upstream):
        raise NotImplementedError(
            f"{name}: the gradient of a loss that was computed outside of forward-mode differentiation has no "
            "forward-mode derivative; compute the loss inside"
        )


def is_plain(tensor: Tensor) -> bool:
    """Real memory: neither a tensor being traced (a subclass: torch.compile, export), nor one of a torch.func
    transform, nor a batch of gradients (is_grads_batched=True)."""
    return (
        type(tensor) is Tensor
        and not is_functorch_wrapped_tensor(tensor)
        and not is_legacy_batchedtensor(tensor)
    )


def kept_dtype(tensor: Tensor) -> torch.dtype:
    """What an op keeps the gradient of a tensor in, as in csrc/kept_gradient.h."""
    return torch.float32 if tensor.dtype is torch.float16 else tensor.dtype


def in_units(tensor: Tensor, wanted: bool = True) -> bool:
    """Whether the gradient of these logits, if wanted, comes in units of its rows (csrc/row_scales.h)."""
    return wanted and tensor.dtype == torch.float16


def times(gradient: Tensor, factor: Tensor, dim: int) -> Tensor:
    """A gradient of logits by one number, or by one per row. Computed in the dtype of the loss: half precision may not hold
    the factor."""
    factor = factor.unsqueeze(dim) if factor.dim() else factor
    return (gradient.to(factor.dtype) * factor).to(gradient.dtype)


def _is_one(upstream: Tensor | None) -> bool:
    """Whether it is the number 1, as far as that can be seen without waiting for a device."""
    return (
        type(upstream) is Tensor
        and upstream.is_cpu
        and upstream.dim() == 0
        and not is_functorch_wrapped_tensor(upstream)
        and not is_legacy_batchedtensor(upstream)
        and not _len_torch_dispatch_stack()  # make_fx, whose graph has to hold for other numbers
        and upstream.item() == 1.0
    )


class _Eager(torch.autograd.Function):
    """Puts a computed loss into the graph; everything else that the op returns is constant.

    register_autograd would go through Python twice. At small batches the steps of Python are most of the time that
    a loss takes (benchmarks/overhead.py), so there are few on the common path.
    """

    @staticmethod
    def forward(ctx, call, *differentiable):
        loss, arguments, output = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[: loss.tensors])  # for the rare paths alone
        ctx.loss = loss
        ctx.options = arguments[loss.tensors :]
        ctx.gradients = output[loss.gradients]
        return output[0]

    @staticmethod
    def backward(ctx, upstream):
        loss, gradients = ctx.loss, ctx.gradients
        if gradients is not None and not _is_grad_enabled() and _is_one(upstream) and not forward_mode():
            found = loss.for_one(gradients, ctx.options[loss.flags])
            if found is not None:
                ctx.gradients = None
                return (None, *found)
        return (None, *loss.input_gradients(ctx, upstream, ctx.needs_input_grad[1:]))


class _Transformed(torch.autograd.Function):
    """For torch.func, which refuses what register_autograd makes."""

    @staticmethod
    def forward(loss, *arguments):
        return loss.call(*arguments)

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
        gradients = tensors[: loss.stored]
        scaled = loss.scaled(gradients, wanted, upstream, options, in_place=False)
        return tuple(gradient for gradient in scaled if gradient is not None)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.loss, ctx.wanted, ctx.options, upstream, *tensors = inputs
        ctx.save_for_backward(upstream, *tensors[ctx.loss.stored :])

    @staticmethod
    def backward(ctx, *second):
        upstream, *tensors = ctx.saved_tensors
        loss, count = ctx.loss, ctx.loss.differentiable
        options = loss.call.read((*tensors, *ctx.options))[loss.tensors :]
        given = [at for at in range(count) if tensors[at] is not None]

        def value(*inputs):
            changed = dict(zip(given, inputs))
            return loss.reference([changed.get(at, tensor) for at, tensor in enumerate(tensors)], options)

        def first(upstream, *inputs):
            gradients = torch.func.vjp(value, *inputs)[1](upstream)
            return tuple(gradient for gradient, at in zip(gradients, given) if ctx.wanted[at])

        by_upstream, *by_inputs = torch.func.vjp(first, upstream, *[tensors[at] for at in given])[1](second)
        found = dict(zip(given, by_inputs))
        by_tensors = [found.get(at) for at in range(len(tensors))]
        return (None, None, None, by_upstream, *[None] * loss.stored, *by_tensors)
