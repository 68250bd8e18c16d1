"""Module of the place of the label among the classes."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from .loss import Loss

__all__ = ["LogitRank"]


class LogitRank(Loss):
    """`kdkernels.logit_rank` with its option held."""

    def __init__(self, *, dim: int = -1):
        super().__init__(dim=dim)

    def forward(
        self,
        logits: Tensor,  # [..., C]
        target: Tensor,  # row shape, integers
    ) -> Tensor:
        return functional.logit_rank(logits, target, **self.options())
