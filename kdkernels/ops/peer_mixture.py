"""`kdkernels::peer_mixture` for torch. No loss: what comes from above is as large as what it returns, and backward is an
op of its own, which takes the attention from the forward pass.

Second derivatives, and torch.func, are those of the twin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._names import PEER_MIXES, name_of
from .._shared.rows import arithmetic
from ..reference.peer_ensemble import mixed_rows
from .fused_loss import all_savable, any_from_inference, mapped_problems, refuse_tangent
from .open_op import OpenOp

__all__ = ["peer_mixture"]

_OP = OpenOp("peer_mixture")
_BACKWARD = OpenOp("peer_mixture_backward")


def peer_mixture(
    *,
    peer_logits: Tensor,  # [B, P, C]
    query: Tensor | None = None,  # [B, P, d]; without query and key the mixture is the mean
    key: Tensor | None = None,  # [B, P, d]
    temperature: float,
    mix: str,
) -> tuple[Tensor, Tensor]:
    """Mixture `[B, P, C]`, without query `[B, 1, C]`, and attention `[B, P, P]`, without query empty."""
    inputs = peer_logits, query, key, temperature, PEER_MIXES[mix]
    if torch.compiler.is_compiling():
        return _OP(*inputs)
    if torch._C._are_functorch_transforms_active():
        return _twin(*inputs)
    try:
        return _PeerMixture.apply(*inputs)
    except RuntimeError:
        if not any_from_inference(inputs):
            raise
    return _PeerMixture.apply(*all_savable(inputs))


def _twin(
    peer_logits: Tensor, query: Tensor | None, key: Tensor | None, temperature: float, mix: int
) -> tuple[Tensor, Tensor]:
    name = name_of("mix", mix)
    if query is not None:
        options = dict(mix=name, temperature=temperature)
        return reference.peer_attention(query, key, peer_logits, return_attention=True, **options)
    rows = mixed_rows(peer_logits.to(arithmetic(peer_logits)), name, temperature)
    return rows.mean(1, keepdim=True).to(peer_logits.dtype), rows.new_empty(0)


class _PeerMixture(torch.autograd.Function):
    """What register_autograd makes, at half the cost: that goes through Python twice."""

    @staticmethod
    def forward(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            output = _OP.op(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, *above):
        return _backward(ctx, *above)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, temperature, mix = inputs
    _, attention = output
    ctx.set_materialize_grads(False)
    if tensors[1] is None:
        ctx.mark_non_differentiable(attention)
    ctx.save_for_backward(*tensors, attention)
    ctx.options = temperature, mix


def _backward(ctx: Any, grad_mixture: Tensor | None, grad_attention: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, attention = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    if grad_mixture is None and grad_attention is None:
        return (None,) * 5
    refuse_tangent("peer_mixture", grad_mixture, grad_attention)
    if torch.is_grad_enabled():
        found = _differentiable(tensors, ctx.options, wanted, (grad_mixture, grad_attention))
    else:
        if grad_mixture is None:
            grad_mixture = tensors[0].new_zeros(()).expand(tensors[0].shape)
        found = _BACKWARD(grad_mixture, grad_attention, *tensors, attention, *ctx.options, *wanted)
    return (*[gradient if want else None for gradient, want in zip(found, wanted)], None, None)


def _differentiable(
    tensors: list[Tensor | None], options: tuple, wanted: tuple[bool, ...], above: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients, where they may be differentiated again."""
    places = [at for at, want in enumerate(wanted) if want]
    options = _OP.read((*tensors, *options))[len(tensors) :]

    def outputs(*inputs):
        changed = dict(zip(places, inputs))
        both = _twin(*[changed.get(at, tensor) for at, tensor in enumerate(tensors)], *options)
        return tuple(output for output, grad in zip(both, above) if grad is not None)

    _, backward = torch.func.vjp(outputs, *[tensors[at] for at in places])
    found = dict(zip(places, backward(tuple(grad for grad in above if grad is not None))))
    return [found.get(at) for at in range(3)]


def _shapes(peer_logits, query, key, temperature, mix):
    samples, peers, classes = peer_logits.shape
    if query is None:
        dtype, rows, pairs = arithmetic(peer_logits), 1, (0,)
    else:
        dtype, rows, pairs = arithmetic(peer_logits, query, key), peers, (samples, peers, peers)
    return peer_logits.new_empty(samples, rows, classes), peer_logits.new_empty(pairs, dtype=dtype)


def _backward_shapes(
    grad_mixture, grad_attention, peer_logits, query, key, attention, temperature, mix, grad_peers, grad_query, grad_key
):
    wanted = zip((peer_logits, query, key), (grad_peers, grad_query, grad_key))
    return tuple(
        peer_logits.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape if want else 0)
        for tensor, want in wanted
    )


def _vmap(info, in_dims, *arguments):
    problems = mapped_problems(info, in_dims, arguments[:3])
    mixtures, attentions = zip(*[_OP(*problem, *arguments[3:]) for problem in problems])
    if arguments[1] is None:
        return (torch.stack(mixtures), attentions[0]), (0, None)
    return (torch.stack(mixtures), torch.stack(attentions)), (0, 0)


_OP.register(fake=_shapes, vmap=_vmap, backward=_backward, setup_context=_setup_context)
_BACKWARD.register(fake=_backward_shapes)
