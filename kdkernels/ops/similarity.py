"""`kdkernels::similarity_loss` and `kdkernels::similarity_rank` for torch: see fused_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._names import KEY_TARGETS, REDUCTIONS
from .._shared.denominator import as_denominator, divided
from .._shared.rows import arithmetic, reduce_rows
from ..reference.similarity import info_nce_loss, similarity_kl, supervised_contrastive_loss
from .fused_loss import SCALE, FusedLoss, explained, is_plain, kept_dtype, mapped_problems

__all__ = ["similarity_loss", "similarity_rank"]

_NONE, _SUM = REDUCTIONS["none"], REDUCTIONS["sum"]


def _by_twin(
    *,
    query: Tensor,
    key: Tensor,
    temperature_tensor: Tensor | None,
    teacher_query: Tensor | None,
    teacher_key: Tensor | None,
    positive: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    logit_bias: Tensor | None,
    temperature: float,
    key_target: str,
    symmetric: bool,
    scale_by_t2: bool,
    own_key: int,
    allow_tf32: bool,
    **shared: Any,
) -> Tensor:
    shared["temperature"] = temperature if temperature_tensor is None else temperature_tensor
    match key_target:
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
        super().__init__("similarity_loss", _by_twin, differentiable=3, first_gradient=1)
        self.row_weight = self.names.index("row_weight")

    def __call__(self, *arguments: Any) -> tuple[Tensor]:
        tensors, options = arguments[: self.tensors], arguments[self.tensors :]
        if not self.is_per_query(options):
            return super().__call__(*arguments)
        arguments = (*tensors, *self.changed(options, grad_query=False, grad_key=False, grad_temperature=False))
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return super().__call__(*arguments)
        return self.eager(arguments, True in options[self.flags])

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = self.named(arguments)
        query, key = given["query"], given["key"]
        dtype = _arithmetic(query, key, given["teacher_query"], given["teacher_key"])
        return (
            query.new_empty(query.shape[0] if given["reduction"] == _NONE else (), dtype=dtype),
            query.new_empty(query.shape if given["grad_query"] else 0, dtype=kept_dtype(query)),
            query.new_empty(key.shape if given["grad_key"] else 0, dtype=kept_dtype(key)),
            query.new_empty(() if given["grad_temperature"] else 0, dtype=dtype),
        )

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        super().setup_context(ctx, inputs, output)
        if self.is_per_query(ctx.options):
            ctx.gradients = None  # whatever the op was asked for

    def is_per_query(self, options: tuple) -> bool:
        return options[self.option["reduction"]] == _NONE

    def computed_again(
        self, tensors: tuple, options: tuple, upstream: Tensor, wanted: tuple[bool, ...]
    ) -> tuple[Tensor, ...]:
        if not self.is_per_query(options):
            return super().computed_again(tensors, options, upstream, wanted)
        weight, tensors = tensors[self.row_weight], list(tensors)
        tensors[self.row_weight] = upstream if weight is None else upstream * weight
        options = self.changed(options, reduction=_SUM)[: -self.differentiable]
        return self.whole(*tensors, *options, *wanted)[self.gradients]

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


def _scaled(gradient: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    if in_place and gradient.dim() and is_plain(gradient):
        SCALE(gradient, upstream, 1)
        return gradient
    return (gradient * upstream).to(gradient.dtype)


_LOSS = SimilarityLoss()
_RANK = torch.ops.kdkernels.similarity_rank.default


def similarity_loss(
    *,
    function: str,  # the public one, named in errors
    query: Tensor,
    key: Tensor,
    key_target: str,
    teacher_query: Tensor | None = None,
    teacher_key: Tensor | None = None,
    positive: Tensor | None = None,  # int64
    query_labels: Tensor | None = None,  # int64
    key_labels: Tensor | None = None,  # int64
    own_key: int = -1,  # key own_key + j is query j; < 0: a query is none of the keys
    logit_bias: Tensor | None = None,  # broadcastable to [Q, K]
    temperature: float | Tensor,
    normalize: bool,
    symmetric: bool = False,
    scale_by_t2: bool = False,
    mask: Tensor | None = None,
    row_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    reduction: str,
) -> Tensor:
    dtype = _arithmetic(query, key, teacher_query, teacher_key)
    # The gradient of the weights is the loss of each query, which the op has only when it does not reduce.
    learned_weight = row_weight if row_weight is not None and row_weight.requires_grad else None
    wanted = "none" if learned_weight is not None else reduction
    if learned_weight is not None:
        row_weight = None
    elif row_weight is not None:
        row_weight = row_weight.to(dtype)
    if denominator is not None and learned_weight is None:
        # The weights of the queries take over the division: no gradient has to be scaled afterwards.
        elements = key.shape[0] if reduction == "elementmean" else 1
        by = as_denominator(denominator, query) * elements
        row_weight = divided(query.new_ones(query.shape[:1], dtype=dtype) if row_weight is None else row_weight, by)
        wanted = "sum"
    temperature_tensor = None
    if isinstance(temperature, Tensor):
        temperature_tensor, temperature = temperature.to(dtype), 1.0
    if logit_bias is not None:
        logit_bias = logit_bias.detach().to(dtype).expand(query.shape[0], key.shape[0])
    grad = torch.is_grad_enabled()
    arguments = (
        query,
        key,
        temperature_tensor,
        teacher_query,
        teacher_key,
        positive,
        query_labels,
        key_labels,
        logit_bias,
        mask,
        row_weight,
        temperature,
        KEY_TARGETS[key_target],
        normalize,
        symmetric,
        scale_by_t2,
        own_key,
        _allow_tf32(query, key),
        REDUCTIONS[wanted],
        grad and query.requires_grad,
        grad and key.requires_grad,
        grad and temperature_tensor is not None and temperature_tensor.requires_grad,
    )
    (loss,) = explained(_LOSS, arguments, _check_positive, function, positive, key.shape[0], mask)
    if learned_weight is None:
        return loss
    return reduce_rows(loss, mask, learned_weight, reduction, key.shape[0], as_denominator(denominator, query))


def similarity_rank(
    *,
    function: str,  # the public one, named in errors
    query: Tensor,
    key: Tensor,
    positive: Tensor,  # int64
    normalize: bool,
) -> Tensor:
    arguments = (query.detach(), key.detach(), positive, normalize, _allow_tf32(query, key))
    return explained(_RANK, arguments, _check_positive, function, positive, key.shape[0])


def _check_positive(function: str, positive: Tensor | None, keys: int, mask: Tensor | None = None) -> None:
    if positive is not None:
        _checks.positive_range(function, positive, keys, mask)


def _arithmetic(*features: Tensor | None) -> torch.dtype:
    return arithmetic(*[each for each in features if each is not None])


def _allow_tf32(query: Tensor, key: Tensor) -> bool:
    """Whether these are multiplied on tensor cores where torch would do so itself."""
    return query.is_cuda and torch.promote_types(query.dtype, key.dtype) is torch.float32 and _tf32_is_allowed()


def _tf32_is_allowed() -> bool:
    # Not `allow_tf32`, which is an error once the precision has been set by its newer name.
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# torch.compile cannot trace it, and compiles anew where it changes. torch.compiler.assume_constant_result does no more,
# but imports the compiler, which takes longer than all the rest of this package.
_tf32_is_allowed._dynamo_marked_constant = True


@torch.library.register_fake("kdkernels::similarity_rank")
def _rank_shape(query, key, positive, normalize, allow_tf32):
    return torch.empty_like(positive, memory_format=torch.contiguous_format)


@torch.library.register_vmap("kdkernels::similarity_rank")
def _rank_vmap(info, in_dims, *arguments):
    problems = mapped_problems(info, in_dims, arguments[:3])
    return torch.stack([_RANK(*problem, *arguments[3:]) for problem in problems]), 0
