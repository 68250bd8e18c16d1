"""Divergence between two networks' similarities of the same queries and keys, and which of them to trust."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._names import REDUCTIONS


def similarity_kl(
    student_query: Tensor,  # [Q, D], any float dtype
    student_key: Tensor,  # [K, D], any float dtype
    teacher_query: Tensor,  # [Q, E], any float dtype
    teacher_key: Tensor,  # [K, E], any float dtype
    *,
    temperature: float | Tensor = 0.5,  # > 0; a tensor has no dimensions
    normalize: bool = True,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,  # [Q], bool
    row_weight: Tensor | None = None,  # [Q], float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
) -> Tensor:
    r"""Divergence of the student's similarities between queries and keys from the teacher's, per query, reduced.

    With `A` the cosine similarities of each network's own features and per query a weight `w`::

        w T^2 KL(softmax(A_teacher / T) || softmax(A_student / T))      softmax over the keys

    That is::

        def cosines(query, key):
            return F.normalize(query, dim=1, eps=1e-8) @ F.normalize(key, dim=1, eps=1e-8).T

        A_teacher, A_student = cosines(teacher_query, teacher_key), cosines(student_query, student_key)
        p = F.softmax(A_teacher / T, -1)
        T * T * F.kl_div(F.log_softmax(A_student / T, -1), p, reduction="batchmean")

    without any matrix `[Q, K]`: the gradients are all that is left.

    Arguments:
        student_query, student_key: `[Q, D]` and `[K, D]`, K >= 1, each float32, float16, bfloat16 or float64. Both
            may come from one tensor of features; gradients flow to both.
        teacher_query, teacher_key: `[Q, E]` and `[K, E]`, each of any of those dtypes; on the same device.
            Constants, even where they require grad.
        temperature: T, finite and > 0, or a constant tensor of one number; 0.5 is the one of SSKD's code.
        normalize: divide each row by `max(norm, 1e-8)`; otherwise `A` holds plain inner products. A row of norm
            <= 1e-8 has a gradient of 0 in float16 and bfloat16.
        scale_by_t2: multiply by T^2, which keeps the size of the gradient when T changes.
        mask: bool `[Q]`. False queries are not counted; keys stay. Tiles of 64 queries (128 on CUDA) that are all
            False are not computed.
        row_weight: float `[Q]`. Multiplies a query's loss and does not change the count.
        reduction: `"batchmean"` (sum over queries / counted queries, alias `"mean"`), `"sum"`, `"none"` (`[Q]`)
            or `"elementmean"` (sum / (counted queries * K)).
        denominator: what a mean divides by in place of the counted queries, such as the queries of all micro-batches
            and processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).

    Returns:
        float32, or float64 if any features are float64: a scalar, or `[Q]`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020,
        https://arxiv.org/abs/2006.07114, section 3.2.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> similarity_kl(student, student, teacher, teacher)
    tensor(0.0475)
    """
    function = "similarity_kl"
    _checks.queries_and_keys(function, "student_query", student_query, "student_key", student_key)
    _checks.queries_and_keys(function, "teacher_query", teacher_query, "teacher_key", teacher_key)
    _checks.as_many_rows(function, "student_query", student_query, "teacher_query", teacher_query)
    _checks.as_many_rows(function, "student_key", student_key, "teacher_key", teacher_key)
    temperature = _checks.one_temperature(function, temperature, student_query, "student_query")
    normalize = _checks.flag(function, "normalize", normalize)
    scale_by_t2 = _checks.flag(function, "scale_by_t2", scale_by_t2)
    _checks.one_of(function, "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator, reduction)
    if mask is not None:
        _checks.feature_mask(function, mask, student_query, "student_query")
    if row_weight is not None:
        _checks.feature_weight(function, row_weight, student_query, "student_query")

    if not _backend.use_library(function, student_query):
        return reference.similarity_kl(
            student_query,
            student_key,
            teacher_query,
            teacher_key,
            temperature=temperature,
            normalize=normalize,
            scale_by_t2=scale_by_t2,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
        )

    return ops.similarity_loss(
        function=function,
        query=student_query,
        key=student_key,
        key_target="teacher",
        teacher_query=teacher_query,
        teacher_key=teacher_key,
        temperature=temperature,
        normalize=normalize,
        scale_by_t2=scale_by_t2,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
    )


def similarity_rank(
    query: Tensor,  # [Q, D], any float dtype
    key: Tensor,  # [K, D], any float dtype
    positive: Tensor,  # [Q], integers in [0, K)
    *,
    normalize: bool = True,
) -> Tensor:
    r"""How many keys stand before a query's positive, the most similar one first: 0 where the positive leads.

    With `A` as in `similarity_kl` and `p = positive[j]`::

        #{k: A_jk > A_jp} + #{k < p: A_jk = A_jp}

    That is the place of `p` in `A[j].argsort(descending=True, stable=True)`, without `A` and without sorting.
    No gradient.

    Arguments:
        query, key: `[Q, D]` and `[K, D]`, K >= 1, each float32, float16, bfloat16 or float64.
        positive: `[Q]`, of any integer dtype, a key in [0, K) for each query. Another is a ValueError on the CPU; on
            CUDA, where asking would stall, its rank is 0.
        normalize: divide each row by `max(norm, 1e-8)`; otherwise `A` holds plain inner products.

    Returns:
        int64 `[Q]`, in [0, K); 0 for a query of NaN.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020,
        https://arxiv.org/abs/2006.07114, section 3.3: the error level of a prediction.

    >>> query, key = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> similarity_rank(query, key, torch.tensor([0, 0]))
    tensor([0, 1])
    """
    _checks.queries_and_keys("similarity_rank", "query", query, "key", key)
    positive = _checks.indices("similarity_rank", "positive", positive, query, "query")
    normalize = _checks.flag("similarity_rank", "normalize", normalize)

    if not _backend.use_library("similarity_rank", query, differentiable=False):
        return reference.similarity_rank(query, key, positive, normalize=normalize)

    return ops.similarity_rank(function="similarity_rank", query=query, key=key, positive=positive, normalize=normalize)


def select_trusted_rows(
    rank: Tensor,  # [Q], integers
    ratio: float,  # in [0, 1]
) -> Tensor:
    r"""Which rows a student should learn from: those its teacher has right, and the least wrong of the others.

    All rows of rank 0, and of the W others the `int(W * ratio)` of smallest rank, equal ranks as they come.

    Arguments:
        rank: `[Q]`, of any integer dtype, what `similarity_rank` or `logit_rank` tells of the teacher; on any device.
        ratio: in [0, 1]. SSKD keeps 0.75 of the wrong rows of the similarities and all (1.0) of the logits.

    Returns:
        bool `[Q]`, to be used as `mask`. Where nothing is selected, a loss with that mask is 0.

    Raises:
        ValueError: `ratio` out of range. TypeError: dtypes or types.

    Source:
        Xu, Liu, Li, Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020,
        https://arxiv.org/abs/2006.07114, section 3.3.

    >>> select_trusted_rows(torch.tensor([2, 0, 1, 1, 5]), 0.5)
    tensor([False,  True,  True,  True, False])
    """
    rank = _checks.ranks("select_trusted_rows", rank)
    ratio = _checks.unit_interval("select_trusted_rows", "ratio", ratio)
    # No kernel: Q numbers are sorted once per step, and what torch does for that neither waits nor keeps a matrix.
    return reference.select_trusted_rows(rank, ratio)
