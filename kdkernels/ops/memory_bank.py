"""`kdkernels::memory_bank_nce` and `kdkernels::memory_bank_normalizer` for torch: see fused_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, reference
from .._names import BANK_REDUCTIONS
from .._shared.denominator import as_denominator, divided
from .._shared.rows import arithmetic
from .fused_loss import SCALE, FusedLoss, explained, is_plain, kept_dtype, mapped_problems
from .open_op import OpenOp

__all__ = ["memory_bank_nce", "memory_bank_normalizer"]

_NONE = BANK_REDUCTIONS["none"]


class MemoryBankNCE(FusedLoss):
    """The op: the embedding alone is differentiable. Returns loss and positives."""

    def __init__(self):
        super().__init__("memory_bank_nce", reference.memory_bank_nce, differentiable=1, first_gradient=2)

    def shapes(self, embedding: Tensor, bank: Tensor, *others: Any) -> tuple[Tensor, ...]:
        *_, reduction, grad_embedding = others
        rows, dtype = embedding.shape[:1], arithmetic(embedding, bank)
        return (
            embedding.new_empty(rows if reduction == _NONE else (), dtype=dtype),
            embedding.new_empty(rows, dtype=dtype),
            embedding.new_empty(embedding.shape if grad_embedding else 0, dtype=kept_dtype(embedding)),
        )

    def scaled(
        self,
        gradients: tuple[Tensor, ...],
        wanted: tuple[bool, ...],
        upstream: Tensor,
        options: tuple,
        in_place: bool,
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        if not wanted[0]:
            return (None,)
        if in_place and is_plain(gradient):
            SCALE(gradient, upstream, 1)
            return (gradient,)
        return ((gradient * (upstream.unsqueeze(1) if upstream.dim() else upstream)).to(gradient.dtype),)


_NCE = MemoryBankNCE()
_NORMALIZER = OpenOp("memory_bank_normalizer")


def memory_bank_nce(
    *,
    function: str,  # the public one, named in errors
    embedding: Tensor,
    bank: Tensor,
    index: Tensor,  # int64
    normalizer: float | Tensor,  # a tensor: of the arithmetic type
    temperature: float,
    eps: float,
    reduction: str,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, Z, and the scores of the positives."""
    if not isinstance(normalizer, Tensor):
        # Not torch.full, which would tie a compiled graph to the value.
        zero = torch.zeros((), dtype=arithmetic(embedding, bank), device=embedding.device)
        normalizer = zero + normalizer
    arguments = (
        embedding,
        bank.detach(),
        index,
        normalizer,
        temperature,
        eps,
        BANK_REDUCTIONS[reduction if denominator is None else "sum"],
        torch.is_grad_enabled() and embedding.requires_grad,
    )
    loss, positive = explained(_NCE, arguments, _checks.index_range, function, index, bank.shape[0])
    if denominator is not None:
        loss = divided(loss, as_denominator(denominator, embedding))
    return loss, normalizer, positive


def memory_bank_normalizer(
    *,
    function: str,  # the public one, named in errors
    embedding: Tensor,
    bank: Tensor,
    index: Tensor,  # int64
    known: Tensor | None,  # of the arithmetic type; comes back unless it is NaN
    temperature: float,
) -> Tensor:
    """Z of this call, a constant."""
    arguments = (embedding.detach(), bank.detach(), index, known, temperature)
    return explained(_NORMALIZER, arguments, _checks.index_range, function, index, bank.shape[0])


def _normalizer_shape(embedding, bank, index, known, temperature):
    return embedding.new_empty((), dtype=arithmetic(embedding, bank))


def _normalizer_vmap(info, in_dims, *arguments):
    problems = mapped_problems(info, in_dims, arguments[:4])
    return torch.stack([_NORMALIZER(*problem, arguments[-1]) for problem in problems]), 0


_NORMALIZER.register(fake=_normalizer_shape, vmap=_normalizer_vmap)
