"""Keeps autocast from rounding the products of a twin, and inference_mode from making its constants unusable."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autocast import exact


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, neither broadcast, in their own dtype under autocast too, and so all of its derivatives."""
    left, right = savable(left), savable(right)
    if torch.compiler.is_compiling():  # which takes no function with a forward-mode derivative of its own
        with exact(left):
            return left @ right
    return _Product.apply(left, right)


def savable(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that autograd saves, which it refuses to do with one made in inference_mode."""
    if torch.compiler.is_compiling() or not tensor.is_inference():  # a graph saves what it reads by itself
        return tensor
    place = tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    return tensor.new_empty(0).set_(*place)


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(left, right):
        with exact(left):
            return left @ right

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        left, right = ctx.saved_tensors
        by_left, by_right = ctx.needs_input_grad
        return (
            product(gradient, right.mT) if by_left else None,
            product(left.mT, gradient) if by_right else None,
        )

    @staticmethod
    def jvp(ctx, left_tangent, right_tangent):
        left, right = ctx.saved_tensors
        return product(left_tangent, right) + product(left, right_tangent)
