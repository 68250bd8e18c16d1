"""The divergences of several heads, each a softmax of its own that has a teacher's head beside it.

    sum_i w_i T^2 / R sum_rows KL(softmax(t_i / T) || softmax(s_i / T))

R: the rows of a head, as many in each, or `denominator`. Teachers and weights are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from .._open_numbers import scalar_like
from .._shared.denominator import divided
from .._shared.rows import arithmetic
from .softened_kl import softened_kl

__all__ = ["multi_head_kl"]


def multi_head_kl(
    students: Sequence[Tensor],  # of [..., C_i] logits, any float dtype; the same rows in each
    teachers: Sequence[Tensor],  # the same shapes, logits; constant
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    weights: Sequence[float] | Tensor | None = None,  # >= 0, one per head
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    dtype = arithmetic(*students, *teachers)
    divisor = max(students[0].shape[:-1].numel(), 1) if denominator is None else denominator

    def mean(student: Tensor, teacher: Tensor) -> Tensor:
        total = softened_kl(student.to(dtype), teacher.detach().to(dtype), temperature=temperature, reduction="sum")
        return divided(total, divisor)

    loss = torch.zeros((), dtype=dtype, device=students[0].device)
    for student, teacher, weight in zip(students, teachers, _numbers(weights, students, dtype)):
        # A head of weight 0 adds exactly 0, even where it holds NaN: its rows become equal ones.
        absent = (weight == 0).expand(student.shape)
        loss = loss + weight * mean(student.masked_fill(absent, 0), teacher.masked_fill(absent, 0))
    if not return_parts:
        return loss
    heads = [mean(student.detach(), teacher) for student, teacher in zip(students, teachers)]
    return loss, {"heads": torch.stack(heads)}


def _numbers(weights: Sequence[float] | Tensor | None, students: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each without dimensions; NaN where no device can raise."""
    if isinstance(weights, Tensor):
        weights = weights.detach().to(dtype)
        return list(torch.where(weights >= 0, weights, nan).unbind())
    like = students[0].new_zeros((), dtype=dtype)
    return [scalar_like(like, weight) for weight in (weights or [1.0] * len(students))]
