"""Rules on the logits of peers [B, P, C], and on what comes with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autocast import exact
from .common import dtype_name, float_tensor, integer_tensor, not_negative, one_temperature, same_device
from .rows import MOST_CLASSES, OF_SOFT_LABELS

_MOST_PEERS = 32  # most_peers of csrc/peer_ensemble.h


def peers(function: str, name: str, value: Any) -> Tensor:
    """[B, P, C] logits; a list of P tensors [B, C], all alike, is stacked."""
    if not isinstance(value, Tensor):
        value = _stacked_peers(function, name, value)
    float_tensor(function, name, value)
    shape = value.shape
    if len(shape) != 3 or not shape[1] or not shape[2]:
        raise ValueError(f"{function}: {name} must be [B, P, C] with at least 1 peer and 1 class, got {list(shape)}")
    if shape[1] > _MOST_PEERS:
        raise ValueError(f"{function}: at most {_MOST_PEERS} peers are possible, got {name} {list(shape)}")
    if shape[2] > MOST_CLASSES:
        raise ValueError(f"{function}: at most {MOST_CLASSES} classes are possible, got {name} {list(shape)}")
    return value


def leader(function: str, value: Any, peer_logits: Tensor) -> None:
    float_tensor(function, "leader_logits", value)
    samples, _, classes = shape = peer_logits.shape
    if value.shape != (samples, classes):
        raise ValueError(
            f"{function}: leader_logits must be [B, C], {[samples, classes]} for peer_logits {list(shape)}, "
            f"got {list(value.shape)}"
        )
    same_device(function, "leader_logits", value, peer_logits, "peer_logits")


def peer_features(function: str, query: Any, key: Any, peer_logits: Tensor) -> None:
    """Each [B, P, d]."""
    float_tensor(function, "query", query)
    float_tensor(function, "key", key)
    shape = query.shape
    if len(shape) != 3 or shape[:2] != peer_logits.shape[:2] or not shape[2]:
        raise ValueError(
            f"{function}: query must be [B, P, d] with at least 1 column and the B and P of peer_logits "
            f"{list(peer_logits.shape)}, got {list(shape)}"
        )
    if key.shape != shape:
        raise ValueError(f"{function}: query {list(shape)} and key {list(key.shape)} must have equal shapes")
    same_device(function, "query", query, peer_logits, "peer_logits")
    same_device(function, "key", key, peer_logits, "peer_logits")


def gate(function: str, value: Any, branches: Tensor) -> None:
    float_tensor(function, "gate", value)
    if value.shape != branches.shape[:2]:
        raise ValueError(
            f"{function}: gate must be [B, P], {list(branches.shape[:2])} for branch_logits "
            f"{list(branches.shape)}, got {list(value.shape)}"
        )
    same_device(function, "gate", value, branches, "branch_logits")


def sample_labels(function: str, target: Any, logits: Tensor, logits_name: str) -> Tensor:
    """One class per sample, the first dimension of the logits, as int64; a second dimension may be there, of size 1."""
    target = integer_tensor(function, "target", target, "integer class labels", OF_SOFT_LABELS)
    samples = logits.shape[0]
    if target.shape == (samples, 1):
        target = target.squeeze(1)
    if target.shape != (samples,):
        raise ValueError(
            f"{function}: target must have one label per sample of {logits_name} {list(logits.shape)}, "
            f"got {list(target.shape)}"
        )
    same_device(function, "target", target, logits, logits_name)
    return target


def peer_terms(
    function: str, target: Any, logits: Tensor, logits_name: str, temperature: Any, kl_weight: Any, target_eps: Any
) -> tuple[Tensor, float | Tensor, float, float]:
    """What every loss of peers is told beside its logits."""
    return (
        sample_labels(function, target, logits, logits_name),
        one_temperature(function, temperature, logits, logits_name),
        not_negative(function, "kl_weight", kl_weight),
        not_negative(function, "target_eps", target_eps),
    )


def _stacked_peers(function: str, name: str, value: Any) -> Tensor:
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{function}: {name} must be a torch.Tensor, or a list of one per peer, got {type(value).__name__}"
        )
    if not value:
        raise ValueError(f"{function}: {name} must have at least 1 peer, got an empty {type(value).__name__}")
    for at, peer in enumerate(value):
        own = f"{name}[{at}]"
        float_tensor(function, own, peer)
        if peer.dim() != 2:
            raise ValueError(f"{function}: {own} must be [B, C], got {list(peer.shape)}")
        if peer.shape != value[0].shape:
            raise ValueError(
                f"{function}: {name}[0] {list(value[0].shape)} and {own} {list(peer.shape)} "
                "must have equal shapes"
            )
        if peer.dtype is not value[0].dtype:
            raise TypeError(
                f"{function}: {name}[0] and {own} must have one dtype, "
                f"got {dtype_name(value[0])} and {dtype_name(peer)}; convert one of them"
            )
        same_device(function, own, peer, value[0], f"{name}[0]")
    with exact(value[0]):
        return torch.stack(value, 1)
