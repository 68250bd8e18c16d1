"""`kdkernels::okddip_loss`, `gated_ensemble_loss` and `leave_one_out_loss` for torch: see fused_loss.py.

They return the loss, its four parts and the gradients: one number for all samples, by which all gradients are
multiplied at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._names import PEER_MIXES
from .._shared.rows import arithmetic
from .fused_loss import FusedLoss, is_plain, kept_dtype

PARTS = 4
NAME_OF_MIX = {code: name for name, code in PEER_MIXES.items()}
_SCALE_ALL = torch.ops.kdkernels.scale_gradients_.default


class PeerLoss(FusedLoss):
    """One such op."""

    def without_gradients(self, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output[:2]

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, wanted = arguments[: self.tensors], arguments[-self.differentiable :]
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

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        return self._reference(*tensors, *options[: -self.differentiable])


@torch.library.register_fake("kdkernels::scale_gradients_")
def _scale_shapes(gradients, upstream):
    return None


def _okddip(
    peer_logits: Tensor,
    leader_logits: Tensor | None,
    query: Tensor,
    key: Tensor,
    target: Tensor,
    temperature: float,
    kl_weight: float,
    target_eps: float,
    mix: int,
    detach_targets: bool,
) -> Tensor:
    return reference.okddip_loss(
        peer_logits,
        leader_logits,
        query,
        key,
        target,
        temperature=temperature,
        kl_weight=kl_weight,
        target_eps=target_eps,
        mix=NAME_OF_MIX[mix],
        detach_targets=detach_targets,
    )


def _gated(
    gate: Tensor,
    branch_logits: Tensor,
    target: Tensor,
    temperature: float,
    kl_weight: float,
    target_eps: float,
) -> Tensor:
    return reference.gated_ensemble_loss(
        gate, branch_logits, target, temperature=temperature, kl_weight=kl_weight, target_eps=target_eps
    )


def _leave_one_out(
    peer_logits: Tensor,
    target: Tensor,
    temperature: float,
    kl_weight: float,
    target_eps: float,
    pairwise: bool,
) -> Tensor:
    return reference.leave_one_out_loss(
        peer_logits,
        target,
        temperature=temperature,
        kl_weight=kl_weight,
        pairwise=pairwise,
        target_eps=target_eps,
    )


okddip_loss = PeerLoss("okddip_loss", _okddip, differentiable=4, first_gradient=2)
gated_ensemble_loss = PeerLoss("gated_ensemble_loss", _gated, differentiable=2, first_gradient=2)
leave_one_out_loss = PeerLoss("leave_one_out_loss", _leave_one_out, differentiable=1, first_gradient=2)
