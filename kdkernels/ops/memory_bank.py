"""`kdkernels::memory_bank_nce` and `kdkernels::memory_bank_normalizer` for torch: see fused_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._names import REDUCTIONS
from .._shared.rows import arithmetic
from ..reference.memory_bank import memory_bank_nce as _reference
from .fused_loss import SCALE, FusedLoss, is_plain, kept_dtype, mapped_problems
from .open_op import OpenOp

_NONE = REDUCTIONS["none"]
_NAME_OF_REDUCTION = {code: name for name, code in REDUCTIONS.items()}


class MemoryBankNCE(FusedLoss):
    """The op: the embedding alone is differentiable. Returns loss and positives."""

    def __init__(self):
        super().__init__("memory_bank_nce", _reference, differentiable=1, first_gradient=2)

    def without_gradients(self, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output[:2]

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

    def reference(self, tensors: tuple, options: tuple) -> Tensor:
        embedding, bank, index, normalizer = tensors
        temperature, eps, reduction, _ = options
        return self._reference(
            embedding,
            bank,
            index,
            normalizer=normalizer,
            temperature=temperature,
            eps=eps,
            reduction=_NAME_OF_REDUCTION[reduction],
        )


memory_bank_nce = MemoryBankNCE()
memory_bank_normalizer = OpenOp("memory_bank_normalizer")


def _normalizer_shape(embedding, bank, index, known, temperature):
    return embedding.new_empty((), dtype=arithmetic(embedding, bank))


def _normalizer_vmap(info, in_dims, *arguments):
    problems = mapped_problems(info, in_dims, arguments[:4])
    return torch.stack([memory_bank_normalizer(*problem, arguments[-1]) for problem in problems]), 0


memory_bank_normalizer.register(fake=_normalizer_shape, vmap=_normalizer_vmap)
