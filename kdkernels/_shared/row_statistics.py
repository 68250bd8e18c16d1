"""A number per row, its mean over the batch, and the weight or temperature of a row that follows from both.

All of it is constant: nothing here is differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._open_numbers import scalar_like


def largest_probability(logits: Tensor, dim: int) -> Tensor:
    return 1 / (logits - logits.amax(dim, keepdim=True)).exp().sum(dim)


def cosine_statistic(student: Tensor, teacher: Tensor, gamma: float, dim: int) -> Tensor:
    """(1 - cos(student, teacher)) ^ gamma of raw logits, in [0, 2^gamma]; FLSW of Wen, Lai, Qian 2021."""
    # The small constant, which public implementations share, keeps a row of zeros from being divided by 0.
    student, teacher = (rows / (rows.norm(dim=dim, keepdim=True) + 1e-4) for rows in (student, teacher))
    cosine = (student * teacher).sum(dim)
    return (1 - cosine).clamp(min=0) ** scalar_like(cosine, gamma)  # rounding may take the cosine beyond 1


def doubt_statistic(student: Tensor, dim: int) -> Tensor:
    """1 / (max softmax(student) + 1e-3), in [0.999, C / (1 + 0.001 C)]; CWSM of Wen, Lai, Qian 2021."""
    return 1 / (largest_probability(student, dim) + 1e-3)


def confidence_weights(
    confidence: Tensor,  # row shape
    counted: Tensor,  # row shape, bool
    group: torch.distributed.ProcessGroup | None,
) -> Tensor:
    """Confidences divided by their mean; left as they are where that is 0."""
    total, count = _batch_sum(confidence, counted, group)
    return confidence * torch.where(total > 0, count / total, 1).to(confidence.dtype)


def constant_temperature(temperature: float | Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """In row shape."""
    return (torch.zeros_like(target, dtype=dtype) + temperature).to(dtype)


def row_temperatures(
    hardness: Tensor,  # row shape: large in rows that shall have a low temperature
    mask: Tensor | None,  # row shape: the rows that count; the others have the `temperature` of the batch
    temperature: float | Tensor,
    beta: float,
    normalize: str | None,
    t_min: float | None,
    group: torch.distributed.ProcessGroup | None,
) -> Tensor:
    """temperature + (mean w - w) * beta, w the hardness or, for "l1", its share of the batch's sum."""
    total, count = _batch_sum(hardness, mask, group)
    unit = torch.where(total > 0, total, 1) if normalize == "l1" else 1
    result = (temperature + (total / count - hardness) / unit * beta).to(hardness.dtype)
    if t_min is not None:
        result = result.clamp(min=scalar_like(result, t_min))
    return result if mask is None else torch.where(mask, result, scalar_like(result, temperature))


def _batch_sum(
    values: Tensor, counted: Tensor | None, group: torch.distributed.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Sum and number of the rows that count, over all processes of the group."""
    if counted is None:
        counted = torch.ones_like(values, dtype=torch.bool)
    sums = (x.sum(dtype=torch.float64) for x in (values.masked_fill(~counted, 0), counted))
    totals = torch.stack(tuple(sums))
    if group is not None:
        torch.distributed.all_reduce(totals, group=group)
    return totals[0], totals[1]
