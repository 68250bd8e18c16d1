"""What the processes of a group have to agree on before each can compute its part of a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import positive_range
from .._gather import gather
from .features import usable_keys
from .rows import arithmetic


def keys_of_group(
    features: Tensor, labels: Tensor, group: torch.distributed.ProcessGroup | None
) -> tuple[Tensor, Tensor, int]:
    """Keys and labels of all processes, and which key is the first of the own rows."""
    if group is None:
        return features, labels, 0
    first = torch.distributed.get_rank(group) * features.shape[0]
    return (
        gather("supervised_contrastive", "features", features, group),
        gather("supervised_contrastive", "labels", labels, group),
        first,
    )


def info_nce_directions(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None,
    symmetric: bool,
    logit_bias: Tensor | None,
    mask: Tensor | None,
    group: torch.distributed.ProcessGroup,
) -> list[dict[str, Tensor | None]]:
    """query, key, positive and logit_bias of the losses that this process computes, of which it takes the mean: its
    queries against the keys of all processes; with `symmetric` their positives against all queries, too."""
    queries, keys = query.shape[0], key.shape[0]
    rank = torch.distributed.get_rank(group)
    own = torch.arange(queries, device=query.device)
    if positive is None:
        positive = own
    positive_range("info_nce", positive, keys, mask)
    at, valid = usable_keys(positive, keys)
    masked = symmetric and mask is not None
    all_keys = gather("info_nce", "key", key, group, symmetric=symmetric, mask=masked)
    positive = (positive + rank * keys).where(valid, -1)
    rows = dict(query=query, key=all_keys, positive=positive, logit_bias=logit_bias)
    if not symmetric:
        return [rows]
    absent, present_query = None, query
    if mask is not None:
        present_query = query.masked_fill(~mask.unsqueeze(1), 0)  # a NaN would be one beside the bias of -inf too
        present = gather("info_nce", "mask", mask, group)
        absent = torch.zeros_like(present, dtype=arithmetic(query, key)).masked_fill(~present, -torch.inf)
    all_queries = gather("info_nce", "query", present_query, group)
    columns = dict(
        query=key[at.squeeze(1)], key=all_queries, positive=own + rank * queries, logit_bias=absent
    )
    return [rows, columns]


def mean_of_directions(losses: list[Tensor], divisor: int) -> Tensor:
    mean = (losses[0] + losses[1]) / 2 if len(losses) == 2 else losses[0]
    return mean / divisor


def agreed_normalizer(
    found: Tensor,  # Z of this call
    known: Tensor | None,  # Z, unless that is NaN: not known yet
    group: torch.distributed.ProcessGroup | None,
) -> Tensor:
    """The known Z, else the mean of those found by the processes of the group."""
    if group is not None:
        total = found.to(torch.float64, copy=True)  # processes may compute in unlike dtypes
        torch.distributed.all_reduce(total, group=group)
        found = (total / group.size()).to(found.dtype)
    return found if known is None else torch.where(known.isnan(), found, known)
