"""Rows of all processes of a group, in the order of their ranks, with gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather(function: str, name: str, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[rows, ...] of each process -> [processes * rows, ...] on every process.

    The gradient of a process's rows is the sum over what each process does with its copy of them. All processes
    must call, and go backward, alike. Raises ValueError on each of them if their tensors differ in shape.
    """
    _same_everywhere(function, name, tensor, group)
    return _Gather.apply(tensor, group) if tensor.numel() else tensor


def _same_everywhere(function: str, name: str, tensor: Tensor, group: dist.ProcessGroup) -> None:
    """A collective of tensors that differ in size would hang or spoil memory. Waits for the device."""
    sizes = torch.tensor([tensor.shape], dtype=torch.int64, device=tensor.device)
    found = [torch.empty_like(sizes) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, sizes, group=group)
    shapes = torch.cat(found).tolist()
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{function}: {name} must have one shape on all processes of the group, got {shapes}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        count = dist.get_world_size(group)
        gathered = tensor.new_empty(count * tensor.shape[0], *tensor.shape[1:])
        dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx, gradient):
        return _ScatteredSum.apply(gradient, ctx.group), None


class _ScatteredSum(torch.autograd.Function):
    """The own rows of the sum over all processes."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        count = dist.get_world_size(group)
        own = tensor.new_empty(tensor.shape[0] // count, *tensor.shape[1:])
        dist.reduce_scatter_tensor(own, tensor.contiguous(), group=group)
        return own

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient, ctx.group), None
