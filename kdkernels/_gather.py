"""Rows of all processes of a group, in the order of their ranks, with gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)


def gather(function: str, name: str, tensor: Tensor, group: dist.ProcessGroup, **given: bool) -> Tensor:
    """[rows, ...] of each process -> [processes * rows, ...] on every process.

    The gradient of a process's rows is the sum over what each process does with its copy of them. All processes
    must call, and go backward, alike. Raises on each of them if their tensors differ in shape (ValueError), in dtype
    (TypeError), or in whether they require grad (ValueError); and if an option on which further calls depend is `given`
    by some of them only (ValueError).
    """
    facts = {f"{name} must require grad": torch.is_grad_enabled() and tensor.requires_grad}
    facts |= {f"{option} must be given": is_given for option, is_given in given.items()}
    _same_everywhere(function, name, tensor, group, facts)
    return _Gather.apply(tensor, group) if tensor.numel() else tensor


def _same_everywhere(
    function: str, name: str, tensor: Tensor, group: dist.ProcessGroup, facts: dict[str, bool]
) -> None:
    """A collective of tensors that differ would hang, corrupt memory or take the bits of one dtype for another's. Waits
    for the device."""
    own = torch.tensor(
        [[_DTYPES.index(tensor.dtype), *facts.values(), *tensor.shape]], dtype=torch.int64, device=tensor.device
    )
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=group)
    dtypes, *others = zip(*torch.cat(found).tolist())
    flags, sizes = others[: len(facts)], others[len(facts) :]
    everywhere = "on all processes of the group"
    for rule, holds in zip(facts, flags):
        if len(set(holds)) > 1:
            raise ValueError(f"{function}: {rule} {everywhere} or on none, got {[bool(each) for each in holds]}")
    if any(len(set(size)) > 1 for size in sizes):
        shapes = [list(shape) for shape in zip(*sizes)]
        raise ValueError(f"{function}: {name} must have one shape {everywhere}, got {shapes}")
    if len(set(dtypes)) > 1:
        names = ", ".join(str(_DTYPES[at]).removeprefix("torch.") for at in dtypes)
        raise TypeError(f"{function}: {name} must have one dtype {everywhere}, got {names}; convert it before the loss")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(tensor, group):
        count = dist.get_world_size(group)
        gathered = tensor.new_empty(count * tensor.shape[0], *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=group)
        return gathered

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx, gradient):
        return _ScatteredSum.apply(gradient, ctx.group), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return _Gather.apply(tangent, ctx.group)


class _ScatteredSum(torch.autograd.Function):
    """The own rows of the sum over all processes."""

    @staticmethod
    def forward(tensor, group):
        count = dist.get_world_size(group)
        own = tensor.new_empty(tensor.shape[0] // count, *tensor.shape[1:])
        dist.reduce_scatter_tensor(own, tensor.contiguous(), group=group)
        return own

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient, ctx.group), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return _ScatteredSum.apply(tangent, ctx.group)
