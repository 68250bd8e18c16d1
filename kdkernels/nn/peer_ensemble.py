"""Modules of the losses among peers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import functional
from .loss import Loss

__all__ = [
    "OKDDipLoss",
    "GatedEnsembleLoss",
    "LeaveOneOutLoss",
    "PeerAttention",
    "MeanProbabilities",
]


class OKDDipLoss(Loss):
    """`kdkernels.okddip_loss` with its options held. The projections that make queries and keys of the features
    are the network's: two `nn.Linear(D, D // 8, bias=False)` for all peers.

    >>> import torch
    >>> peers, features = torch.zeros(1, 2, 4), torch.ones(1, 2, 3)
    >>> OKDDipLoss(target_eps=0.0)(peers, peers[:, 0], features, features, torch.tensor([3]))
    tensor(4.1589)
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 3.0,
        kl_weight: float = 1.0,
        target_eps: float = 1e-7,
        mix: str = "logits",
        detach_targets: bool = False,
        return_parts: bool = False,
    ):
        super().__init__(
            temperature=temperature,
            kl_weight=kl_weight,
            target_eps=target_eps,
            mix=mix,
            detach_targets=detach_targets,
            return_parts=return_parts,
        )

    def forward(
        self,
        peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], or P of [B, C]
        leader_logits: Tensor | None,  # [B, C]
        query: Tensor,  # [B, P, d]
        key: Tensor,  # [B, P, d]
        target: Tensor,  # [B], integers
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.okddip_loss(peer_logits, leader_logits, query, key, target, **self.options())


class GatedEnsembleLoss(Loss):
    """`kdkernels.gated_ensemble_loss` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 3.0,
        kl_weight: float = 1.0,
        target_eps: float = 1e-7,
        return_parts: bool = False,
    ):
        super().__init__(
            temperature=temperature, kl_weight=kl_weight, target_eps=target_eps, return_parts=return_parts
        )

    def forward(
        self,
        gate: Tensor,  # [B, P]
        branch_logits: Tensor | Sequence[Tensor],  # [B, P, C], or P of [B, C]
        target: Tensor,  # [B], integers
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.gated_ensemble_loss(gate, branch_logits, target, **self.options())


class LeaveOneOutLoss(Loss):
    """`kdkernels.leave_one_out_loss` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 3.0,
        kl_weight: float = 1.0,
        pairwise: bool = False,
        target_eps: float = 1e-7,
        return_parts: bool = False,
    ):
        super().__init__(
            temperature=temperature,
            kl_weight=kl_weight,
            pairwise=pairwise,
            target_eps=target_eps,
            return_parts=return_parts,
        )

    def forward(
        self,
        peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], or P of [B, C]
        target: Tensor,  # [B], integers
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.leave_one_out_loss(peer_logits, target, **self.options())


class PeerAttention(Loss):
    """`kdkernels.peer_attention` with its options held."""

    def __init__(self, *, mix: str = "logits", temperature: float | Tensor = 1.0, return_attention: bool = False):
        super().__init__(mix=mix, temperature=temperature, return_attention=return_attention)

    def forward(
        self,
        query: Tensor,  # [B, P, d]
        key: Tensor,  # [B, P, d]
        peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], or P of [B, C]
    ) -> Tensor | tuple[Tensor, Tensor]:
        return functional.peer_attention(query, key, peer_logits, **self.options())


class MeanProbabilities(Loss):
    """`kdkernels.mean_probabilities` with its option held."""

    def __init__(self, *, temperature: float | Tensor = 1.0):
        super().__init__(temperature=temperature)

    def forward(
        self,
        peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], or P of [B, C]
    ) -> Tensor:
        return functional.mean_probabilities(peer_logits, **self.options())
