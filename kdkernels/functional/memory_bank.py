"""Contrast with the entries of a memory bank, and the bank's upkeep."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._names import BANK_REDUCTIONS
from .._shared.features import LEAST_NORM
from .._shared.groups import agreed_normalizer
from .._shared.rows import arithmetic


def memory_bank_nce(
    embedding: Tensor,  # [B, d], any float dtype
    bank: Tensor,  # [n, d], any float dtype
    index: Tensor,  # [B, K+1], integers in [0, n), column 0 the positive
    *,
    normalizer: float | Tensor | None = None,  # Z; a tensor has no dimensions
    temperature: float | Tensor = 0.07,  # > 0; a tensor has no dimensions
    eps: float = 1e-7,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    return_parts: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Noise-contrastive estimation: each embedding is to know its positive among entries of a memory bank.

    With the scores P and `c = K / n + eps`, per row::

        P_k = exp(<bank[index_k], embedding> / T) / Z
        - log(P_0 / (P_0 + c)) - sum_{k=1..K} log((K / n) / (P_k + c))

    That is::

        P = torch.einsum("bkd,bd->bk", bank[index], embedding).div(T).exp() / Z
        (P[:, 0] / (P[:, 0] + c)).log().neg() - (K / n / (P[:, 1:] + c)).log().sum(1)

    in one visit to each entry: neither the `[B, K+1, d]` entries nor, on the CPU, their scores are stored.
    The logarithms are taken of `1 + ...`: thousands of ratios near 1, as above, lose in float32 what they add
    up to.

    Arguments:
        embedding: `[B, d]`; float32, float16, bfloat16 or float64. Used as it is: normalise it first, as
            CRD does.
        bank: `[n, d]`, any of those dtypes, n >= 1; a constant.
        index: `[B, K+1]`, of any integer dtype, in [0, n), K >= 1; column 0 the positive. Another index is a
            ValueError on the CPU; on CUDA, where asking would stall, it makes its row NaN, and so the Z of this
            call.
        normalizer: Z > 0, a constant. None computes `n * mean(exp(<bank[index_k], embedding> / T))` over all
            columns of this call, the positives among them. A tensor that holds NaN stands for None: a buffer
            that begins as NaN and keeps `parts["normalizer"]` of the first call costs no synchronisation.
        temperature: T, finite and > 0, or a constant tensor of one number. 0.07 is the code's, 0.1 the paper's
            on CIFAR-100.
        eps: finite and >= 0; 1e-7 is the code's.
        reduction: `"batchmean"` (mean over rows, alias `"mean"`), `"sum"` or `"none"` (`[B]`).
        denominator: what a mean divides by in place of B, such as the rows of all micro-batches and processes. Finite
            and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        return_parts: also return `{"normalizer", "positive"}`, detached and on the device: Z, and the scores
            P_0 `[B]`.
        group: processes over which a Z computed here is averaged; all of them call. By default this one.

    Returns:
        float32, or float64 if embedding or bank are float64: a scalar, or `[B]` for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
        https://arxiv.org/abs/1910.10699, equations 18 and 19; Z as in the authors' code.

    >>> embedding, bank = torch.tensor([[0.6, 0.8]]), torch.eye(2)
    >>> loss, parts = memory_bank_nce(embedding, bank, torch.tensor([[0, 1]]), temperature=1.0, return_parts=True)
    >>> loss, parts
    (tensor(1.4888), {'normalizer': tensor(4.0477), 'positive': tensor([0.4502])})
    """
    function = "memory_bank_nce"
    _checks.features(function, "embedding", embedding)
    _checks.memory_bank(function, bank, embedding)
    index = _checks.bank_index(function, index, embedding)
    normalizer = _checks.normalizer(function, normalizer, embedding)
    temperature = _checks.one_temperature(function, temperature, embedding, "embedding")
    eps = _checks.not_negative(function, "eps", eps)
    return_parts = _checks.flag(function, "return_parts", return_parts)
    _checks.one_of(function, "reduction", reduction, BANK_REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator, reduction)
    if group is not None:
        _checks.process_group(function, group)

    if not _backend.use_library(function, embedding):
        return reference.memory_bank_nce(
            embedding,
            bank,
            index,
            normalizer=normalizer,
            temperature=temperature,
            eps=eps,
            reduction=reduction,
            denominator=denominator,
            return_parts=return_parts,
            group=group,
        )

    dtype = arithmetic(embedding, bank)
    if isinstance(temperature, Tensor):  # the ops take a number
        embedding, temperature = embedding.to(dtype) / temperature.to(dtype), 1.0
    z = normalizer
    if normalizer is None or isinstance(normalizer, Tensor):
        known = None if normalizer is None else normalizer.detach().to(dtype)
        z = ops.memory_bank_normalizer(
            function=function, embedding=embedding, bank=bank, index=index, known=known, temperature=temperature
        )
        if group is not None:
            z = agreed_normalizer(z, known, group)
    loss, z, positive = ops.memory_bank_nce(
        function=function,
        embedding=embedding,
        bank=bank,
        index=index,
        normalizer=z,
        temperature=temperature,
        eps=eps,
        reduction=reduction,
        denominator=denominator,
    )
    return (loss, {"normalizer": z, "positive": positive}) if return_parts else loss


@torch.no_grad()
def update_entries(
    bank: Tensor,  # [n, d], changed in place
    index: Tensor,  # [B], integers in [0, n)
    embedding: Tensor,  # [B, d]
    *,
    momentum: float,
) -> None:
    """`bank[index] <- l2(momentum * bank[index] + (1 - momentum) * embedding)`; of a repeated index the last
    row wins.

    Plain torch: a batch of rows is too little work for a kernel to gain anything. Rows of one index write the
    same numbers, those of the last of them, so that the order in which a device writes does not matter, and
    nothing waits for it.
    """
    index = _checks.bank_rows("update_entries", index, embedding, "embedding", bank.shape[0])
    ordered, order = index.sort(stable=True)
    last = order[torch.searchsorted(ordered, ordered, right=True) - 1]
    old = bank[ordered]
    new = momentum * old + (1 - momentum) * embedding[last].to(bank.dtype)
    bank.index_copy_(0, ordered, F.normalize(new, dim=1, eps=LEAST_NORM))
