"""Modules of the losses on similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from .loss import Loss

__all__ = [
    "SimilarityKL",
    "SimilarityRank",
    "SelectTrustedRows",
    "InfoNCE",
    "SupervisedContrastive",
]


class SimilarityKL(Loss):
    """`kdkernels.similarity_kl` with its options held.

    >>> import torch
    >>> SimilarityKL(temperature=0.5)(*[torch.eye(2)] * 4)
    tensor(0.)
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.5,
        normalize: bool = True,
        scale_by_t2: bool = True,
        reduction: str = "batchmean",
    ):
        super().__init__(
            temperature=temperature, normalize=normalize, scale_by_t2=scale_by_t2, reduction=reduction
        )

    def forward(
        self,
        student_query: Tensor,  # [Q, D]
        student_key: Tensor,  # [K, D]
        teacher_query: Tensor,  # [Q, E]
        teacher_key: Tensor,  # [K, E]
        *,
        mask: Tensor | None = None,  # [Q], bool
        row_weight: Tensor | None = None,  # [Q], float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.similarity_kl(
            student_query,
            student_key,
            teacher_query,
            teacher_key,
            mask=mask,
            row_weight=row_weight,
            denominator=denominator,
            **self.options(),
        )


class SimilarityRank(Loss):
    """`kdkernels.similarity_rank` with its option held."""

    def __init__(self, *, normalize: bool = True):
        super().__init__(normalize=normalize)

    def forward(
        self,
        query: Tensor,  # [Q, D]
        key: Tensor,  # [K, D]
        positive: Tensor,  # [Q], integers
    ) -> Tensor:
        return functional.similarity_rank(query, key, positive, **self.options())


class SelectTrustedRows(Loss):
    """`kdkernels.select_trusted_rows` with its ratio held."""

    def __init__(self, ratio: float):
        super().__init__(ratio=ratio)

    def forward(
        self,
        rank: Tensor,  # [Q], integers
    ) -> Tensor:
        return functional.select_trusted_rows(rank, **self.options())


class InfoNCE(Loss):
    """`kdkernels.info_nce` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.07,
        normalize: bool = True,
        symmetric: bool = False,
        reduction: str = "batchmean",
        group: torch.distributed.ProcessGroup | None = None,
    ):
        super().__init__(
            temperature=temperature,
            normalize=normalize,
            symmetric=symmetric,
            reduction=reduction,
            group=group,
        )

    def forward(
        self,
        query: Tensor,  # [Q, D]
        key: Tensor,  # [K, D]
        positive: Tensor | None = None,  # [Q], integers
        *,
        logit_bias: Tensor | None = None,  # broadcastable to [Q, K], float
        mask: Tensor | None = None,  # [Q], bool
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.info_nce(
            query, key, positive, logit_bias=logit_bias, mask=mask, denominator=denominator, **self.options()
        )


class SupervisedContrastive(Loss):
    """`kdkernels.supervised_contrastive` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.07,
        normalize: bool = True,
        reduction: str = "batchmean",
        group: torch.distributed.ProcessGroup | None = None,
    ):
        super().__init__(temperature=temperature, normalize=normalize, reduction=reduction, group=group)

    def forward(
        self,
        features: Tensor,  # [N, D]
        labels: Tensor,  # [N], integers
        *,
        mask: Tensor | None = None,  # [N], bool
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.supervised_contrastive(
            features, labels, mask=mask, denominator=denominator, **self.options()
        )
