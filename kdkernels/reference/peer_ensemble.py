"""Peers that teach each other while all of them learn.

    x_r = sum_b W_rb z_b        t_r = softmax(x_r / T), or sum_b W_rb softmax(z_b / T) of probabilities
    W: attention softmax_b(Q_a . K_b), a gate, or the mean of the peers or of all others

Terms are means over the samples and sums over the peers. Nothing is constant unless told so: attention and
gate learn through the targets alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from .. import _checks
from .._autocast import exact
from .._shared.modes import product
from .._shared.rows import arithmetic, hard_losses, log_softmax, zero_loss
from .softened_kl import softened_kl

__all__ = ["okddip_loss", "gated_ensemble_loss", "leave_one_out_loss"]

_NO_LABEL = -(2**63)  # what is ignored: no label may be


def okddip_loss(
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    leader_logits: Tensor | None,  # [B, C], any float dtype
    query: Tensor,  # [B, P, d], any float dtype
    key: Tensor,  # [B, P, d], any float dtype
    target: Tensor,  # [B], int64 in [0, C)
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    kl_weight: float = 1.0,
    target_eps: float = 1e-7,  # >= 0
    mix: str = "logits",
    detach_targets: bool = False,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    peers = stacked(peer_logits)
    leader = peers[:, :0] if leader_logits is None else leader_logits.unsqueeze(1)  # [B, 0 or 1, C]
    dtype = arithmetic(peers, leader, query, key)
    peers, leader = from_largest(peers.to(dtype)), leader.to(dtype)
    ce_peers, ce_leader = (cross_entropy("okddip_loss", rows, target) for rows in (peers, leader))
    # Query and key have a gradient, 0, where no target reaches them.
    loss = ce_peers + ce_leader + zero_loss(target, "sum", query, key)
    if not kl_weight and not return_parts:
        return loss

    attention = attention_weights(query, key, dtype)
    sources = mixed_rows(peers, mix, temperature)
    if detach_targets:
        attention, sources = attention.detach(), sources.detach()
    options = dict(temperature=temperature, teacher_kind=mix, target_eps=target_eps)
    kl_peers = divergence(peers, mixture(attention, sources), **options)
    kl_leader = divergence(leader, sources.mean(1, keepdim=True), **options)
    if kl_weight:  # a term of weight 0 adds exactly 0, even where it is infinite
        loss = loss + kl_weight * (kl_peers + kl_leader)
    parts = {"ce_peers": ce_peers, "ce_leader": ce_leader, "kl_peers": kl_peers, "kl_leader": kl_leader}
    return (loss, detached(parts)) if return_parts else loss


def gated_ensemble_loss(
    gate: Tensor,  # [B, P], any float dtype
    branch_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    target: Tensor,  # [B], int64 in [0, C)
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    kl_weight: float = 1.0,
    target_eps: float = 1e-7,  # >= 0
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    branches = stacked(branch_logits)
    dtype = arithmetic(branches, gate)
    branches = from_largest(branches.to(dtype))
    ensemble = mixture(gate.to(dtype).unsqueeze(1), branches)
    ce_branches, ce_ensemble = (
        cross_entropy("gated_ensemble_loss", rows, target) for rows in (branches, ensemble)
    )
    loss = ce_branches + ce_ensemble
    if not kl_weight and not return_parts:
        return loss

    kl = divergence(branches, ensemble, temperature=temperature, target_eps=target_eps)
    if kl_weight:
        loss = loss + kl_weight * kl
    parts = {"ce_branches": ce_branches, "ce_ensemble": ce_ensemble, "kl": kl}
    return (loss, detached(parts)) if return_parts else loss


def leave_one_out_loss(
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    target: Tensor,  # [B], int64 in [0, C)
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    kl_weight: float = 1.0,
    pairwise: bool = False,
    target_eps: float = 1e-7,  # >= 0
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    peers = stacked(peer_logits)
    peers = from_largest(peers.to(arithmetic(peers)))
    loss = ce = cross_entropy("leave_one_out_loss", peers, target)
    if not kl_weight and not return_parts:
        return loss

    kl = divergence_from_others(peers, pairwise, temperature=temperature, target_eps=target_eps)
    if kl_weight:
        loss = loss + kl_weight * kl
    return (loss, detached({"ce": ce, "kl": kl})) if return_parts else loss


def stacked(peer_logits: Tensor | Sequence[Tensor]) -> Tensor:
    """[B, P, C]."""
    if isinstance(peer_logits, Tensor):
        return peer_logits
    with exact(peer_logits[0]):
        return torch.stack(tuple(peer_logits), 1)


def from_largest(peers: Tensor) -> Tensor:
    """Every peer's logits less the largest of them, on which no loss depends: a mixture of large logits would round
    them, one of their differences is exact."""
    return peers - peers.amax(-1, keepdim=True).detach()


def attention_weights(query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax_b(Q_a . K_b), [B, P, P]."""
    return product(query.to(dtype), key.to(dtype).mT).softmax(-1)


def mixed_rows(peers: Tensor, mix: str, temperature: float | Tensor) -> Tensor:
    """What is mixed, [B, P, C]: logits, or probabilities."""
    return peers if mix == "logits" else log_softmax(peers, temperature, -1).exp()


def mixture(
    weights: Tensor,  # [B, R, P]
    sources: Tensor,  # [B, P, C], logits or probabilities
) -> Tensor:
    """`weights @ sources`, [B, R, C]: -inf where one of any weight is. Neither 0 * -inf is taken, nor the
    derivative by a weight of -inf."""
    absent = sources == -inf
    reached = product((weights != 0).to(sources.dtype), absent.to(sources.dtype)) > 0
    return product(weights, sources.masked_fill(absent, 0)).masked_fill(reached, -inf)


def cross_entropy(
    function: str,
    logits: Tensor,  # [B, R, C]
    target: Tensor,  # [B]
) -> Tensor:
    """Mean over samples, sum over rows."""
    _checks.class_range(function, target, logits.shape[-1])
    labels = target.unsqueeze(1).expand(logits.shape[:2])
    return hard_losses(logits, labels, 0, _NO_LABEL, -1).sum() / max(len(target), 1)


def divergence(
    students: Tensor,  # [B, ..., C] logits
    teachers: Tensor,  # the same or broadcastable to it
    **options: float | Tensor | str,
) -> Tensor:
    """T^2 KL(teachers || students), mean over samples, sum over rows."""
    kl = softened_kl(students, teachers.expand(students.shape), reduction="sum", **options)
    return kl / max(len(students), 1)


def divergence_from_others(peers: Tensor, pairwise: bool, **options: float | Tensor) -> Tensor:
    """T^2 KL of each peer from the mean logits of all others, or its mean over them."""
    count = peers.shape[1]
    if count == 1:  # there is nobody to learn from
        return peers.new_zeros(())
    others = torch.tensor([[b for b in range(count) if b != a] for a in range(count)], device=peers.device)
    teachers = peers[:, others]  # [B, P, P-1, C]
    if not pairwise:
        return divergence(peers, teachers.mean(2), **options)
    return divergence(peers.unsqueeze(2).expand_as(teachers), teachers, **options) / (count - 1)


def detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.detach() for name, part in parts.items()}
