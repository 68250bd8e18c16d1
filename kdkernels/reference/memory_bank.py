"""Noise-contrastive estimation against a memory bank.

    P_bk = exp(<bank[index_bk], e_b> / T) / Z        c = K / n + eps
    -log(P_b0 / (P_b0 + c)) - sum_k log((K / n) / (P_bk + c))

In the logit `u = log(P / c)` that is logistic regression, `softplus(-u_b0) + sum_k softplus(u_bk)` and a
constant: nothing overflows, and ratios near 1 keep their digits.
"""

from __future__ import annotations

from math import nan

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks
from .._open_numbers import scalar, scalar_like
from .._shared.groups import agreed_normalizer
from .._shared.modes import product
from .._shared.rows import arithmetic, reduce_rows

__all__ = ["memory_bank_nce"]


def memory_bank_nce(
    embedding: Tensor,  # [B, d], any float dtype
    bank: Tensor,  # [n, d], any float dtype
    index: Tensor,  # [B, K+1], int64 in [0, n), column 0 the positive
    *,
    normalizer: float | Tensor | None = None,  # Z; a tensor has no dimensions
    temperature: float | Tensor = 0.07,  # > 0; a tensor has no dimensions
    eps: float = 1e-7,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    return_parts: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    dtype, entries, negatives = arithmetic(embedding, bank), bank.shape[0], index.shape[1] - 1
    scores = bank_scores(embedding.to(dtype), bank.detach().to(dtype), index) / temperature
    z = normalizer
    if z is None or isinstance(z, Tensor):
        known = None if z is None else z.detach().to(dtype)
        z = agreed_normalizer(entries * scores.detach().exp().mean(), known, group)
    else:
        z = scalar_like(scores, z)

    log_noise = scalar(negatives / entries + eps).log()
    u = scores - z.log() - log_noise
    losses = -F.logsigmoid(u[:, 0]) - F.logsigmoid(-u[:, 1:]).sum(1)
    losses = losses + negatives * scalar(eps * entries / negatives).log1p()
    loss = reduce_rows(losses, None, None, reduction, 1, denominator)
    positive = (u[:, 0] + log_noise).exp()
    return (loss, {"normalizer": z, "positive": positive.detach()}) if return_parts else loss


def bank_scores(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """`[B, K+1]` inner products; a row of NaN for an index that is none, where no device can raise."""
    _checks.index_range("memory_bank_nce", index, bank.shape[0])
    valid = (index >= 0) & (index < bank.shape[0])
    scores = product(bank[torch.where(valid, index, 0)], embedding.unsqueeze(-1)).squeeze(-1)
    return torch.where(valid.all(1, keepdim=True), scores, nan)
