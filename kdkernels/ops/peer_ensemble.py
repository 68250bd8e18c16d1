"""`kdkernels::okddip_loss`, `gated_ensemble_loss` and `leave_one_out_loss` for torch: see fused_loss.py.

They return the loss, its four parts and the gradients: one number for all samples, by which all gradients are
multiplied at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, reference
from .._names import PEER_MIXES
from .._shared.rows import arithmetic
from .fused_loss import FusedLoss, explained, is_plain, kept_dtype

__all__ = ["gated_ensemble_loss", "leave_one_out_loss", "okddip_loss"]

PARTS = 4
_SCALE_ALL = torch.ops.kdkernels.scale_gradients_.default


class PeerLoss(FusedLoss):
    """One such op."""

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, wanted = arguments[: self.tensors], arguments[self.flags]
        first, dtype = tensors[0], arithmetic(*[tensor for tensor in tensors if tensor is not None])
        kept = [kept_dtype(first if tensor is None else tensor) for tensor in tensors]
        return (
            first.new_empty((), dtype=dtype),
            first.new_empty(PARTS, dtype=dtype),
            *[
                first.new_empty(tensor.shape if want else 0, dtype=dtype)
                for tensor, want, dtype in zip(tensors, wanted, kept)
            ],
        )

    def scaled(
        self,
        gradients: tuple[Tensor, ...],
        wanted: tuple[bool, ...],
        upstream: Tensor,
        options: tuple,
        in_place: bool,
    ) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient, want in zip(gradients, wanted) if want]
        if in_place and all(map(is_plain, given)):
            _SCALE_ALL(given, upstream)
        else:
            given = [(gradient * upstream).to(gradient.dtype) for gradient in given]
        found = iter(given)
        return tuple(next(found) if want else None for want in wanted)


@torch.library.register_fake("kdkernels::scale_gradients_")
def _scale_shapes(gradients, upstream):
    return None


_OKDDIP = PeerLoss("okddip_loss", reference.okddip_loss, differentiable=4, first_gradient=2)
_GATED = PeerLoss("gated_ensemble_loss", reference.gated_ensemble_loss, differentiable=2, first_gradient=2)
_LEAVE_ONE_OUT = PeerLoss("leave_one_out_loss", reference.leave_one_out_loss, differentiable=1, first_gradient=2)


def okddip_loss(
    *,
    function: str,  # the public one, named in errors
    peer_logits: Tensor,
    leader_logits: Tensor | None,
    query: Tensor,
    key: Tensor,
    target: Tensor,  # int64
    temperature: float,
    kl_weight: float,
    target_eps: float,
    mix: str,
    detach_targets: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its parts: cross entropy of the peers and of the leader, divergence of the peers and of the leader."""
    grad = torch.is_grad_enabled()
    arguments = (
        peer_logits,
        leader_logits,
        query,
        key,
        target,
        temperature,
        kl_weight,
        target_eps,
        PEER_MIXES[mix],
        detach_targets,
        grad and peer_logits.requires_grad,
        grad and leader_logits is not None and leader_logits.requires_grad,
        grad and query.requires_grad,
        grad and key.requires_grad,
    )
    return explained(_OKDDIP, arguments, _checks.class_range, function, target, peer_logits.shape[2])


def gated_ensemble_loss(
    *,
    function: str,  # the public one, named in errors
    gate: Tensor,
    branch_logits: Tensor,
    target: Tensor,  # int64
    temperature: float,
    kl_weight: float,
    target_eps: float,
) -> tuple[Tensor, Tensor]:
    """The loss and its parts: cross entropy of the branches and of the ensemble, divergence; the fourth is 0."""
    grad = torch.is_grad_enabled()
    arguments = (
        gate,
        branch_logits,
        target,
        temperature,
        kl_weight,
        target_eps,
        grad and gate.requires_grad,
        grad and branch_logits.requires_grad,
    )
    return explained(_GATED, arguments, _checks.class_range, function, target, branch_logits.shape[2])


def leave_one_out_loss(
    *,
    function: str,  # the public one, named in errors
    peer_logits: Tensor,
    target: Tensor,  # int64
    temperature: float,
    kl_weight: float,
    target_eps: float,
    pairwise: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its parts: cross entropy, 0, divergence, 0."""
    arguments = (
        peer_logits,
        target,
        temperature,
        kl_weight,
        target_eps,
        pairwise,
        torch.is_grad_enabled() and peer_logits.requires_grad,
    )
    return explained(_LEAVE_ONE_OUT, arguments, _checks.class_range, function, target, peer_logits.shape[2])
