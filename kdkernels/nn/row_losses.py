"""Modules of the row losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, functional
from .loss import Loss

__all__ = [
    "SoftenedKL",
    "SoftCrossEntropy",
    "KDLoss",
    "VirtualTeacherLoss",
    "LabelSmoothingLoss",
    "CWTMLoss",
    "DecoupledKL",
    "DKPPLoss",
    "DynamicTemperatureKL",
    "JointCrossEntropy",
    "ClassRangeCrossEntropy",
    "MultiHeadKL",
]


class SoftenedKL(Loss):
    """`kdkernels.softened_kl` with its options held.

    >>> import torch
    >>> SoftenedKL(temperature=4.0)(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor(0.)
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 1.0,
        divergence: str = "forward",
        beta: float = 0.5,
        skew: float = 0.0,
        teacher_kind: str = "logits",
        standardize: bool = False,
        shared_classes: int | None = None,
        target_eps: float = 0.0,
        scale_by_t2: bool = True,
        reduction: str = "batchmean",
        dim: int = -1,
    ):
        super().__init__(
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            skew=skew,
            teacher_kind=teacher_kind,
            standardize=standardize,
            shared_classes=shared_classes,
            target_eps=target_eps,
            scale_by_t2=scale_by_t2,
            reduction=reduction,
            dim=dim,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        teacher: Tensor,  # the same shape
        *,
        mask: Tensor | None = None,  # row shape, bool
        row_weight: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.softened_kl(
            student, teacher, mask=mask, row_weight=row_weight, denominator=denominator, **self.options()
        )


class SoftCrossEntropy(Loss):
    """`kdkernels.soft_cross_entropy` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 1.0,
        teacher_kind: str = "logits",
        shared_classes: int | None = None,
        target_eps: float = 0.0,
        scale_by_t2: bool = True,
        reduction: str = "batchmean",
        dim: int = -1,
    ):
        super().__init__(
            temperature=temperature,
            teacher_kind=teacher_kind,
            shared_classes=shared_classes,
            target_eps=target_eps,
            scale_by_t2=scale_by_t2,
            reduction=reduction,
            dim=dim,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        teacher: Tensor,  # the same shape
        *,
        mask: Tensor | None = None,  # row shape, bool
        row_weight: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.soft_cross_entropy(
            student, teacher, mask=mask, row_weight=row_weight, denominator=denominator, **self.options()
        )


class KDLoss(Loss):
    """`kdkernels.kd_loss` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 4.0,
        divergence: str = "forward",
        beta: float = 0.5,
        skew: float = 0.0,
        standardize: bool = False,
        shared_classes: int | None = None,
        ce_weight: float = 1.0,
        kl_weight: float = 1.0,
        label_smoothing: float = 0.0,
        target_eps: float = 0.0,
        ignore_index: int = -100,
        mask_ignored: bool = False,
        reduction: str = "batchmean",
        dim: int = -1,
        return_parts: bool = False,
    ):
        super().__init__(
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            skew=skew,
            standardize=standardize,
            shared_classes=shared_classes,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            label_smoothing=label_smoothing,
            target_eps=target_eps,
            ignore_index=ignore_index,
            mask_ignored=mask_ignored,
            reduction=reduction,
            dim=dim,
            return_parts=return_parts,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        teacher: Tensor,  # the same shape
        target: Tensor,  # row shape, integers; or floats in the shape of student
        *,
        mask: Tensor | None = None,  # row shape, bool
        row_weight: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.kd_loss(
            student, teacher, target, mask=mask, row_weight=row_weight, denominator=denominator, **self.options()
        )


class VirtualTeacherLoss(Loss):
    """`kdkernels.virtual_teacher_loss` with its options held."""

    def __init__(
        self,
        *,
        correct_prob: float = 0.99,
        temperature: float | Tensor = 20.0,
        student_temperature: float | Tensor = 1.0,
        ce_weight: float = 1.0,
        kl_weight: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "batchmean",
        dim: int = -1,
        return_parts: bool = False,
    ):
        super().__init__(
            correct_prob=correct_prob,
            temperature=temperature,
            student_temperature=student_temperature,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            dim=dim,
            return_parts=return_parts,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        target: Tensor,  # row shape, integers
        *,
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.virtual_teacher_loss(student, target, denominator=denominator, **self.options())


class LabelSmoothingLoss(Loss):
    """`kdkernels.label_smoothing_loss` with its options held."""

    def __init__(
        self,
        *,
        smoothing: float = 0.1,
        convention: str = "paper",
        ignore_index: int = -100,
        reduction: str = "batchmean",
        dim: int = -1,
    ):
        super().__init__(
            smoothing=smoothing,
            convention=convention,
            ignore_index=ignore_index,
            reduction=reduction,
            dim=dim,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        target: Tensor,  # row shape, integers
        *,
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.label_smoothing_loss(student, target, denominator=denominator, **self.options())


class CWTMLoss(Loss):
    """`kdkernels.cwtm_loss` with its options held."""

    def __init__(
        self,
        *,
        shared_classes: int | None = None,
        normalize: bool = True,
        ignore_index: int = -100,
        reduction: str = "batchmean",
        dim: int = -1,
        group: torch.distributed.ProcessGroup | None = None,
        normalise: bool | None = None,
    ):
        super().__init__(
            shared_classes=shared_classes,
            normalize=_checks.normalization("CWTMLoss", normalize, normalise),
            ignore_index=ignore_index,
            reduction=reduction,
            dim=dim,
            group=group,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        target: Tensor,  # row shape, integers
        teacher: Tensor | None = None,  # the shape of student
        *,
        confidence: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.cwtm_loss(
            student, target, teacher, confidence=confidence, denominator=denominator, **self.options()
        )


class DecoupledKL(Loss):
    """`kdkernels.decoupled_kl` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        ignore_index: int = -100,
        reduction: str = "batchmean",
        dim: int = -1,
        return_parts: bool = False,
    ):
        super().__init__(
            temperature=temperature,
            alpha=alpha,
            beta=beta,
            ignore_index=ignore_index,
            reduction=reduction,
            dim=dim,
            return_parts=return_parts,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        teacher: Tensor,  # the same shape
        target: Tensor,  # row shape, integers
        *,
        mask: Tensor | None = None,  # row shape, bool
        row_weight: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.decoupled_kl(
            student, teacher, target, mask=mask, row_weight=row_weight, denominator=denominator, **self.options()
        )


class DKPPLoss(Loss):
    """`kdkernels.dkpp_loss` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 1.0,
        shared_classes: int | None = None,
        reduction: str = "batchmean",
        dim: int = -1,
    ):
        super().__init__(temperature=temperature, shared_classes=shared_classes, reduction=reduction, dim=dim)

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        teacher: Tensor,  # the same shape
        *,
        permutation: Tensor | None = None,  # the same shape, integers
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,  # row shape, bool
        row_weight: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.dkpp_loss(
            student,
            teacher,
            permutation=permutation,
            generator=generator,
            mask=mask,
            row_weight=row_weight,
            denominator=denominator,
            **self.options(),
        )


class DynamicTemperatureKL(Loss):
    """`kdkernels.dynamic_temperature_kl` with its options held."""

    def __init__(
        self,
        *,
        temperature: float | Tensor = 4.0,
        shared_classes: int | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        mode: str = "flsw",
        adjust: str = "none",
        smoothing: float = 0.1,
        normalize: str | None = None,
        t_min: float | None = 1.0,
        scale_by_t2: bool = True,
        ce_weight: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "batchmean",
        dim: int = -1,
        return_parts: bool = False,
        group: torch.distributed.ProcessGroup | None = None,
    ):
        super().__init__(
            temperature=temperature,
            shared_classes=shared_classes,
            beta=beta,
            gamma=gamma,
            mode=mode,
            adjust=adjust,
            smoothing=smoothing,
            normalize=normalize,
            t_min=t_min,
            scale_by_t2=scale_by_t2,
            ce_weight=ce_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            dim=dim,
            return_parts=return_parts,
            group=group,
        )

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        teacher: Tensor,  # the same shape
        target: Tensor,  # row shape, integers
        *,
        mask: Tensor | None = None,  # row shape, bool
        row_weight: Tensor | None = None,  # row shape, float
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.dynamic_temperature_kl(
            student, teacher, target, mask=mask, row_weight=row_weight, denominator=denominator, **self.options()
        )


class JointCrossEntropy(Loss):
    """`kdkernels.joint_cross_entropy` with its options held."""

    def __init__(self, *, transforms: int = 4, ignore_index: int = -100, reduction: str = "batchmean"):
        super().__init__(transforms=transforms, ignore_index=ignore_index, reduction=reduction)

    def forward(
        self,
        joint_logits: Tensor,  # [transforms * B, transforms * N]
        target: Tensor,  # [B], integers
        *,
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.joint_cross_entropy(joint_logits, target, denominator=denominator, **self.options())


class ClassRangeCrossEntropy(Loss):
    """`kdkernels.class_range_cross_entropy` with its options held."""

    def __init__(self, *, ignore_index: int = -100, reduction: str = "batchmean", dim: int = -1):
        super().__init__(ignore_index=ignore_index, reduction=reduction, dim=dim)

    def forward(
        self,
        student: Tensor,  # [..., C] logits
        target: Tensor,  # row shape, integers
        start: int,
        stop: int,
        *,
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor:
        return functional.class_range_cross_entropy(
            student, target, start, stop, denominator=denominator, **self.options()
        )


class MultiHeadKL(Loss):
    """`kdkernels.multi_head_kl` with its options held.

    >>> import torch
    >>> MultiHeadKL(temperature=4.0)([torch.zeros(2, 3), torch.zeros(2, 5)], [torch.zeros(2, 3), torch.zeros(2, 5)])
    tensor(0.)
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 3.0,
        weights: Sequence[float] | Tensor | None = None,
        return_parts: bool = False,
    ):
        super().__init__(temperature=temperature, weights=weights, return_parts=return_parts)

    def forward(
        self,
        students: Sequence[Tensor],  # of [..., C_i] logits
        teachers: Sequence[Tensor],  # the same shapes
        *,
        denominator: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.multi_head_kl(students, teachers, denominator=denominator, **self.options())
