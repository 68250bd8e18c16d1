"""Losses on the similarities of queries and keys, and ranks among them.

    A_jk = <f_j, g_k>, of rows divided by max(norm, 1e-8) where `normalize`

A row of norm <= 1e-8 is divided by a constant, and in half precision is one.

The definitions keep the matrix A [Q, K], which the kernels never do.
"""

from __future__ import annotations

from math import nan

import torch
from torch import Tensor

from .._checks import positive_range
from .._shared.features import unit_rows, usable_keys
from .._shared.groups import info_nce_directions, keys_of_group, mean_of_directions
from .._shared.modes import product, savable
from .._shared.rows import arithmetic, reduce_rows
from .softened_kl import softened_kl

__all__ = ["similarity_kl", "similarity_rank", "select_trusted_rows", "info_nce", "supervised_contrastive"]


def similarity_kl(
    student_query: Tensor,  # [Q, D], any float dtype
    student_key: Tensor,  # [K, D], any float dtype
    teacher_query: Tensor,  # [Q, E], any float dtype
    teacher_key: Tensor,  # [K, E], any float dtype
    *,
    temperature: float | Tensor = 0.5,  # > 0; a tensor has no dimensions
    normalize: bool = True,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # [Q], bool
    row_weight: Tensor | None = None,  # [Q], float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
) -> Tensor:
    dtype = arithmetic(student_query, student_key, teacher_query, teacher_key)
    return softened_kl(
        similarities(student_query, student_key, normalize, dtype, mask),
        similarities(teacher_query.detach(), teacher_key.detach(), normalize, dtype, mask),
        temperature=temperature,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
    )


def similarity_rank(
    query: Tensor,  # [Q, D], any float dtype
    key: Tensor,  # [K, D], any float dtype
    positive: Tensor,  # [Q], int64 in [0, K)
    *,
    normalize: bool = True,
) -> Tensor:
    positive_range("similarity_rank", positive, key.shape[0])
    similarity = similarities(query.detach(), key.detach(), normalize, arithmetic(query, key))
    at, valid = usable_keys(positive, key.shape[0])
    own = similarity.gather(1, at).masked_fill(~valid.unsqueeze(1), nan)  # which nothing is larger than
    before = torch.arange(key.shape[0], device=key.device) < at
    return ((similarity > own) | ((similarity == own) & before)).sum(1)


def select_trusted_rows(
    rank: Tensor,  # [Q], int64
    ratio: float,  # in [0, 1]
) -> Tensor:
    trusted = (rank == 0).sum()
    wrong = rank.numel() - trusted
    kept = trusted + (wrong.double() * ratio).long()  # the product in double, cut off: Python's int(wrong * ratio)
    # Rows by rising rank, equal ones as they come; then the place of each row in that order.
    place = rank.argsort(stable=True).argsort()
    return place < kept


def info_nce(
    query: Tensor,  # [Q, D], any float dtype
    key: Tensor,  # [K, D], any float dtype
    positive: Tensor | None = None,  # [Q], int64 in [0, K)
    *,
    temperature: float | Tensor = 0.07,  # > 0; a tensor has no dimensions
    normalize: bool = True,
    symmetric: bool = False,
    logit_bias: Tensor | None = None,  # broadcastable to [Q, K], float
    mask: Tensor | None = None,  # [Q], bool
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    options = dict(temperature=temperature, normalize=normalize, mask=mask, denominator=denominator)
    if group is None:
        return info_nce_loss(
            query, key, positive, symmetric=symmetric, logit_bias=logit_bias, reduction=reduction, **options
        )
    directions = info_nce_directions(query, key, positive, symmetric, logit_bias, mask, group)
    divisor = 1
    if reduction == "elementmean":
        reduction, divisor = "batchmean", directions[0]["key"].shape[0]
    losses = [info_nce_loss(**each, symmetric=False, reduction=reduction, **options) for each in directions]
    return mean_of_directions(losses, divisor)


def supervised_contrastive(
    features: Tensor,  # [N, D], any float dtype
    labels: Tensor,  # [N], int64
    *,
    temperature: float | Tensor = 0.07,  # > 0; a tensor has no dimensions
    normalize: bool = True,
    mask: Tensor | None = None,  # [N], bool
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    key, key_labels, own_key = keys_of_group(features, labels, group)
    return supervised_contrastive_loss(
        features,
        key,
        labels,
        key_labels,
        own_key,
        temperature=temperature,
        normalize=normalize,
        mask=mask,
        reduction=reduction,
        denominator=denominator,
    )


# What the functions and the compiled op have in common


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    positive: Tensor | None,
    *,
    temperature: float | Tensor,
    normalize: bool,
    symmetric: bool,
    logit_bias: Tensor | None,
    mask: Tensor | None,
    row_weight: Tensor | None = None,  # [Q]
    reduction: str,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Cross entropy of each query with its positive; with `symmetric` its mean with that of the positive's column."""
    keys = key.shape[0]
    if positive is None:
        positive = torch.arange(query.shape[0], device=query.device)
    positive_range("info_nce", positive, keys, mask)
    if isinstance(temperature, Tensor):
        temperature = savable(temperature)
    logits = similarities(query, key, normalize, arithmetic(query, key), mask) / temperature
    if logit_bias is not None:
        logits = logits + logit_bias.detach().to(logits.dtype)
    at, valid = usable_keys(positive, keys)
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(1), 0)  # a row without a key is NaN, to its gradient too
        valid = valid | ~mask  # so is the column of a positive that is none
    losses = -logits.log_softmax(1).gather(1, at).squeeze(1)
    if symmetric:
        # Of probability 0, and not NaN in a column without anything else.
        absent = torch.finfo(logits.dtype).min
        logits = logits.clamp(min=absent)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(1), absent)
        columns = -logits.log_softmax(0).gather(1, at).squeeze(1)
        losses = (losses + columns) / 2
    losses = losses * torch.where(valid, 1.0, nan).to(losses.dtype)  # where no device can raise
    return reduce_rows(losses, mask, row_weight, reduction, keys, denominator)


def supervised_contrastive_loss(
    query: Tensor,
    key: Tensor,
    query_labels: Tensor,
    key_labels: Tensor,
    own_key: int,  # key own_key + j is query j; < 0: a query is none of the keys
    *,
    temperature: float | Tensor,
    normalize: bool,
    mask: Tensor | None,
    row_weight: Tensor | None = None,  # [Q]
    reduction: str,
    denominator: float | Tensor | None = None,
) -> Tensor:
    logits = similarities(query, key, normalize, arithmetic(query), mask) / temperature
    positive = query_labels.unsqueeze(1) == key_labels
    if own_key >= 0:
        place = torch.arange(key.shape[0], device=key.device)
        own = place == own_key + torch.arange(query.shape[0], device=query.device).unsqueeze(1)
        positive = positive & ~own
        logits = logits.masked_fill(own, torch.finfo(logits.dtype).min)  # of probability 0, and not NaN where alone
    counted = positive.any(1) if mask is None else positive.any(1) & mask
    log_q = logits.log_softmax(1).masked_fill(~positive, 0)
    losses = -log_q.sum(1) / positive.sum(1).clamp(min=1)
    return reduce_rows(losses, counted, row_weight, reduction, key.shape[0], denominator)


def similarities(
    query: Tensor, key: Tensor, normalize: bool, dtype: torch.dtype, mask: Tensor | None = None
) -> Tensor:
    """A [Q, K]. A masked query becomes a harmless row of zeros: a NaN there must not reach the gradient either. So do keys
    that no query is compared with."""
    if mask is not None:
        query, key = query.masked_fill(~mask.unsqueeze(1), 0), key.masked_fill(~mask.any(), 0)
    if normalize:
        return product(unit_rows(query, dtype), unit_rows(key, dtype).T)
    return product(query.to(dtype), key.to(dtype).T)
