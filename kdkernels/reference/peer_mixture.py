"""What peers say together, for losses of one's own and for ensembles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._shared.rows import arithmetic
from .peer_ensemble import attention_weights, mixed_rows, mixture, stacked

__all__ = ["peer_attention", "mean_probabilities"]


def peer_attention(
    query: Tensor,  # [B, P, d], any float dtype
    key: Tensor,  # [B, P, d], any float dtype
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    *,
    mix: str = "logits",
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    peers = stacked(peer_logits)
    dtype = arithmetic(peers, query, key)
    attention = attention_weights(query, key, dtype)
    mixed = mixture(attention, mixed_rows(peers.to(dtype), mix, temperature)).to(peers.dtype)
    return (mixed, attention) if return_attention else mixed


def mean_probabilities(
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    *,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
) -> Tensor:
    peers = stacked(peer_logits)
    return mixed_rows(peers.to(arithmetic(peers)), "probs", temperature).mean(1).to(peers.dtype)
