"""`kdkernels::similarity_loss` and `kdkernels::similarity_rank` for torch: see fused_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._names import KEY_TARGETS, REDUCTIONS
from .._shared.rows import arithmetic
from ..reference.similarity import info_nce_loss, similarity_kl, supervised_contrastive_loss
from .fused_loss import SCALE, FusedLoss, is_plain, kept_dtype, mapped_problems

_NONE, _SUM = REDUCTIONS["none"], REDUCTIONS["sum"]
_NAME_OF_REDUCTION = {code: name for name, code in REDUCTIONS.items()}
_TARGET_OF = {code: name for name, code in KEY_TARGETS.items()}


def _reference(
    query: Tensor,
    key: Tensor,
    temperature_tensor: Tensor | None,
    teacher_query: Tensor | None,
    teacher_key: Tensor | None,
    positive: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    logit_bias: Tensor | None,
    mask: Tensor | None,
    row_weight: Tensor | None,
    temperature: float,
    target: int,
    normalize: bool,
    symmetric: bool,
    scale_by_t2: bool,
    own_key: int,
    allow_tf32: bool,
    reduction: str,
) -> Tensor:
    shared = dict(
        temperature=temperature if temperature_tensor is None else temperature_tensor,
        normalize=normalize,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
    )
    match _TARGET_OF[target]:
        case "positive":
            return info_nce_loss(query, key, positive, symmetric=symmetric, logit_bias=logit_bias, **shared)
        case "labels":
            return supervised_contrastive_loss(query, key, query_labels, key_labels, own_key, **shared)
        case "teacher":
            return similarity_kl(query, key, teacher_query, teacher_key, scale_by_t2=scale_by_t2, **shared)


class SimilarityLoss(FusedLoss):
    """The op: query, key and temperature_tensor are differentiable.

    The losses of single queries ("none") share the gradients of their keys, which the upstream gradients of the
    queries could not be applied to afterwards. The forward pass computes none then, and backward runs the op
    again for the sum, each query weighted by its upstream gradient.
    """

    def __init__(self):
        super().__init__("similarity_loss", _reference, differentiable=3, first_gradient=1)
        self.row_weight = self.names.index("row_weight")

    def __call__(self, *arguments: Any) -> tuple[Tensor]:
        *others, reduction, grad_query, grad_key, grad_temperature = arguments
        if reduction != _NONE:
            return super().__call__(*arguments)
        arguments = (*others, reduction, False, False, False)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return super().__call__(*arguments)
        return self.eager(arguments, grad_query or grad_key or grad_temperature)

    def without_gradients(self, output: tuple[Tensor, ...]) -> tuple[Tensor]:
        return output[:1]

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        query, key, _, *teacher = arguments[:5]
        reduction, grad_query, grad_key, grad_temperature = arguments[-4:]
        dtype = arithmetic(query, key, *[each for each in teacher if each is not None])
        return (
            query.new_empty(query.shape[0] if reduction == _NONE else (), dtype=dtype),
            query.new_empty(query.shape if grad_query else 0, dtype=kept_dtype(query)),
            query.new_empty(key.shape if grad_key else 0, dtype=kept_dtype(key)),
            query.new_empty(() if grad_temperature else 0, dtype=dtype),
        )

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        super().setup_context(ctx, inputs, output)
        if self.is_per_query(ctx.options):
            ctx.gradients = None  # whatever the op was asked for

    def is_per_query(self, options: tuple) -> bool:
        return options[-1 - self.differentiable] == _NONE

    def computed_again(
        self, tensors: tuple, options: tuple, upstream: Tensor, wanted: tuple[bool, ...]
    ) -> tuple[Tensor, ...]:
        if not self.is_per_query(options):
            return super().computed_again(tensors, options, upstream, wanted)
        weight, tensors = tensors[self.row_weight], list(tensors)
        tensors[self.row_weight] = upstream if weight is None else upstream * weight
        return self.whole(*tensors, *options[: -1 - self.differentiable], _SUM, *wanted)[self.gradients]

    def scaled(
        self,
        gradients: tuple[Tensor, ...],
        wanted: tuple[bool, ...],
        upstream: Tensor,
        options: tuple,
        in_place: bool,
    ) -> tuple[Tensor | None, ...]:
        if self.is_per_query(options):  # they are, by the weights
            return tuple(gradient if want else None for gradient, want in zip(gradients, wanted))
        return tuple(
            _scaled(gradient, upstream, in_place) if want else None
            for gradient, want in zip(gradients, wanted)
        )

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        *numbers, reduction, _, _, _ = options
        return self._reference(*tensors, *numbers, _NAME_OF_REDUCTION[reduction])


def _scaled(gradient: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    if in_place and gradient.dim() and is_plain(gradient):
        SCALE(gradient, upstream, 1)
        return gradient
    return (gradient * upstream).to(gradient.dtype)


similarity_loss = SimilarityLoss()
similarity_rank = torch.ops.kdkernels.similarity_rank.default


@torch.library.register_fake("kdkernels::similarity_rank")
def _rank_shape(query, key, positive, normalize, allow_tf32):
    return torch.empty_like(positive, memory_format=torch.contiguous_format)


@torch.library.register_vmap("kdkernels::similarity_rank")
def _rank_vmap(info, in_dims, *arguments):
    problems = mapped_problems(info, in_dims, arguments[:3])
    return torch.stack([similarity_rank(*problem, *arguments[3:]) for problem in problems]), 0
