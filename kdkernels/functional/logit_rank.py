"""How far a network is from the label."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._shards import row_numbers

_NO_LABEL = -(2**63)  # what the op ignores: no label may be


@torch.no_grad()
def logit_rank(
    logits: Tensor,  # [..., C], any float dtype, classes along `dim`
    target: Tensor,  # row shape, integer labels in [0, C)
    *,
    dim: int = -1,
) -> Tensor:
    r"""Number of classes that stand before the label, the largest logit first: 0 where the label leads.

    With `y` the label::

        #{c: z_c > z_y} + #{c < y: z_c = z_y}

    That is the place of `y` in `logits.argsort(dim=-1, descending=True, stable=True)`, in one sweep over memory
    and without sorting; `(logit_rank(logits, target) < k).float().mean()` is the top-k accuracy. No gradient.

    Arguments:
        logits: `[..., C]`, or anything else that orders the classes; float32, float16, bfloat16 or float64,
            C <= 2^24. A NaN stands before the label, and every class before a label of NaN: a broken row is
            never correct.
        target: labels of any integer dtype in row shape (the shape of the logits without `dim`, which may also be
            there with size 1), in [0, C). Another label is a ValueError on the CPU; on CUDA, where asking would
            stall, its rank is -1.
        dim: the class dimension.

    Returns:
        int64 in [0, C), the row shape.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020,
        https://arxiv.org/abs/2006.07114, section 3.3: the error level of a prediction.

    >>> logit_rank(torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 3.0]]), torch.tensor([2, 1]))
    tensor([1, 0])
    """
    if is_sharded(logits):
        return row_numbers(logit_rank, locals())
    function = "logit_rank"
    _checks.float_tensor(function, "logits", logits)
    dim = _checks.class_dimension(function, logits, dim)
    target = _checks.labels(function, target, logits, dim, "use target.argmax(dim) of probabilities")
    if not _backend.use_library(function, logits, differentiable=False):
        return reference.logit_rank(logits, target, dim=dim)
    _checks.class_range(function, target, logits.shape[dim])
    ranks = ops.row_statistics(
        function=function, rows=logits, target=target, statistic="rank", ignore_index=_NO_LABEL, dim=dim
    )
    return ranks.long()
