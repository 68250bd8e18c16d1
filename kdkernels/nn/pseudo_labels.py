"""Module of labels that a network makes."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from .loss import Loss

__all__ = ["PseudoLabels"]


class PseudoLabels(Loss):
    """`kdkernels.pseudo_labels` with its options held."""

    def __init__(
        self,
        *,
        threshold: float | Tensor = 0.0,
        temperature: float | Tensor = 1.0,
        ignore_index: int = -100,
        dim: int = -1,
    ):
        super().__init__(threshold=threshold, temperature=temperature, ignore_index=ignore_index, dim=dim)

    def forward(
        self,
        logits: Tensor,  # [..., C]
    ) -> tuple[Tensor, Tensor]:
        return functional.pseudo_labels(logits, **self.options())
