"""Contrastive cross entropies: of queries with their positive, and of features with those of their own label."""

from __future__ import annotations


import torch
from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._names import REDUCTIONS
from .._shared.groups import info_nce_directions, keys_of_group, mean_of_directions


def info_nce(
    query: Tensor,  # [Q, D], any float dtype
    key: Tensor,  # [K, D], any float dtype
    positive: Tensor | None = None,  # [Q], integers in [0, K)
    *,
    temperature: float | Tensor = 0.07,  # > 0; a tensor has no dimensions
    normalize: bool = True,
    symmetric: bool = False,
    logit_bias: Tensor | None = None,  # broadcastable to [Q, K], float
    mask: Tensor | None = None,  # [Q], bool
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Cross entropy that tells a query's positive key from all other keys, per query, reduced.

    With `A` the cosine similarities and `s = A / T + logit_bias`::

        - log softmax(s_j)[positive_j]                                     over the keys

    and with `symmetric` the mean of that and of the same along the column of the positive::

        - log softmax(s[:, positive_j])[j]                                 over the queries

    That is `F.cross_entropy(s, positive)`, and for the diagonal and `symmetric`::

        (F.cross_entropy(s, positive) + F.cross_entropy(s.T, positive)) / 2

    without the matrix s: the gradients are all that is left.

    Arguments:
        query, key: `[Q, D]` and `[K, D]`, K >= 1, each float32, float16, bfloat16 or float64. Gradients flow to
            both.
        positive: `[Q]`, of any integer dtype, in [0, K). None: key j is the positive of query j, with Q <= K, and
            Q = K where `symmetric`. Another number is a ValueError on the CPU; on CUDA, where asking would stall, it
            makes the loss of its query NaN.
        temperature: T, finite and > 0, or a tensor of one number, which may require grad: to learn CLIP's
            logit scale, give `1 / scale.exp()`. A tensor on CUDA is not looked at. 0.07 is MoCo's and CLIP's
            first; SSKD's head is trained at 1.
        normalize: divide each row by `max(norm, 1e-8)`; otherwise `A` holds plain inner products. A row of norm
            <= 1e-8 has a gradient of 0 in float16 and bfloat16.
        symmetric: both directions, averaged. Queries that share a positive are negatives of each other there.
        logit_bias: float, broadcastable to `[Q, K]`, constant; added to `A / T`. `-inf` removes a key from a
            query: of a bool mask of the keys that stay, `torch.where(mask, 0.0, -torch.inf)`.
        mask: bool `[Q]`. False queries are not counted, and are no negatives of others along a column; keys stay.
            Tiles of 64 queries (128 on CUDA) that are all False are not computed.
        reduction: `"batchmean"` (sum over queries / counted queries, alias `"mean"`), `"sum"`, `"none"` (`[Q]`)
            or `"elementmean"` (sum / (counted queries * keys)).
        denominator: what a mean divides by in place of the counted queries, such as the queries of all micro-batches
            and processes; the losses of all processes of `group` then add up to that of one that has all queries.
            Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        group: gather the keys of all processes, which have to be as many on each; with `symmetric` the
            queries too. `positive` still numbers the process's own keys; `logit_bias` is `[Q, all keys]`, and
            not possible together with `symmetric`. The mean of the losses of all processes is the loss of one
            that has all queries; gradients are right for DDP, which averages them. Waits for the device.

    Returns:
        float32, or float64 for float64 features: a scalar, or `[Q]`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018,
        https://arxiv.org/abs/1807.03748, equation 4. `symmetric`: Radford et al., "Learning Transferable Visual
        Models From Natural Language Supervision", ICML 2021, https://arxiv.org/abs/2103.00020, figure 3.

    >>> query, key = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> info_nce(query, key, temperature=1.0)
    tensor(0.4791)
    >>> info_nce(query, key, temperature=1.0, symmetric=True)
    tensor(0.4912)
    """
    _checks.queries_and_keys("info_nce", "query", query, "key", key)
    symmetric = _checks.flag("info_nce", "symmetric", symmetric)
    if positive is not None:
        positive = _checks.indices("info_nce", "positive", positive, query, "query")
    else:
        _checks.diagonal("info_nce", query, key, square=symmetric and group is None)
    temperature = _checks.one_temperature("info_nce", temperature, query, "query", learned=True)
    normalize = _checks.flag("info_nce", "normalize", normalize)
    _checks.one_of("info_nce", "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("info_nce", denominator, reduction)
    if mask is not None:
        _checks.feature_mask("info_nce", mask, query, "query")
    if group is not None:
        _checks.process_group("info_nce", group)
    if logit_bias is not None:
        _checks.bias_of_one_direction("info_nce", symmetric, group)
        processes = 1 if group is None else torch.distributed.get_world_size(group)
        _checks.logit_bias("info_nce", logit_bias, query, processes * key.shape[0])

    options = dict(temperature=temperature, normalize=normalize, mask=mask, denominator=denominator)
    if not _backend.use_library("info_nce", query):
        options.update(symmetric=symmetric, logit_bias=logit_bias, reduction=reduction, group=group)
        return reference.info_nce(query, key, positive, **options)
    options.update(function="info_nce", key_target="positive")
    if group is None:
        return ops.similarity_loss(
            query=query,
            key=key,
            positive=positive,
            symmetric=symmetric,
            logit_bias=logit_bias,
            reduction=reduction,
            **options,
        )
    directions = info_nce_directions(query, key, positive, symmetric, logit_bias, mask, group)
    divisor = 1
    if reduction == "elementmean":
        reduction, divisor = "batchmean", directions[0]["key"].shape[0]
    losses = [ops.similarity_loss(**each, reduction=reduction, **options) for each in directions]
    return mean_of_directions(losses, divisor)


def supervised_contrastive(
    features: Tensor,  # [N, D], any float dtype
    labels: Tensor,  # [N], integers
    *,
    temperature: float | Tensor = 0.07,  # > 0; a tensor has no dimensions
    normalize: bool = True,
    mask: Tensor | None = None,  # [N], bool
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    group: torch.distributed.ProcessGroup | None = None,
) -> Tensor:
    r"""Supervised contrastive loss: an anchor's features against those of its own label, per anchor, reduced.

    With `A` the cosine similarities, `P_j` the other rows of the label of row j, and a softmax over all rows but
    row j itself ("outside the log")::

        - 1 / |P_j| sum_{p in P_j} log softmax_{k != j}(A_j / T)_p

    That is::

        unit = F.normalize(features, dim=1, eps=1e-8)
        own = torch.eye(N, dtype=torch.bool)
        log_q = (unit @ unit.T / T).masked_fill(own, -torch.inf).log_softmax(1)
        pairs = (labels[:, None] == labels) & ~own
        losses = -log_q.masked_fill(~pairs, 0).sum(1) / pairs.sum(1)
        losses[pairs.any(1)].mean()

    without any matrix `[N, N]`: the gradient is all that is left.

    Arguments:
        features: `[N, D]`, the views of all images stacked; float32, float16, bfloat16 or float64.
        labels: `[N]`, of any integer dtype, any numbers. The labels of two views are the same; for self-supervised
            learning number the images.
        temperature: T, finite and > 0, or a constant tensor of one number; 0.07 is the paper's, which also trains at
            0.1.
        normalize: divide each row by `max(norm, 1e-8)`; otherwise `A` holds plain inner products. A row of norm
            <= 1e-8 has a gradient of 0 in float16 and bfloat16.
        mask: bool `[N]`. False rows are no anchors and not counted; they stay keys of others. Tiles of 64 rows
            (128 on CUDA) that are all False are not computed as anchors.
        reduction: `"batchmean"` (sum over anchors / counted anchors, alias `"mean"`), `"sum"`, `"none"` (`[N]`)
            or `"elementmean"` (sum / (counted anchors * N)). An anchor without positives has the loss 0 and is not
            counted.
        denominator: what a mean divides by in place of the counted anchors, such as the anchors of all micro-batches
            and processes; the losses of all processes of `group` then add up to that of one that has all rows.
            Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        group: gather features and labels of all processes, which have to be as many on each. The mean of the
            losses of all processes is the loss of one that has all rows, if each counts as many anchors;
            gradients are right for DDP, which averages them. Waits for the device.

    Returns:
        float32, or float64 for float64 features: a scalar, or `[N]`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, https://arxiv.org/abs/2004.11362,
        equation 2. The paper's code also multiplies by T / 0.07.

    >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> supervised_contrastive(features, torch.tensor([0, 0, 1]), temperature=1.0)
    tensor(0.5470)
    """
    function = "supervised_contrastive"
    _checks.features(function, "features", features)
    labels = _checks.indices(function, "labels", labels, features, "features")
    temperature = _checks.one_temperature(function, temperature, features, "features")
    normalize = _checks.flag(function, "normalize", normalize)
    _checks.one_of(function, "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator, reduction)
    if mask is not None:
        _checks.feature_mask(function, mask, features, "features")
    if group is not None:
        _checks.process_group(function, group)

    if not _backend.use_library(function, features):
        return reference.supervised_contrastive(
            features,
            labels,
            temperature=temperature,
            normalize=normalize,
            mask=mask,
            reduction=reduction,
            denominator=denominator,
            group=group,
        )

    key, key_labels, own_key = keys_of_group(features, labels, group)
    return ops.similarity_loss(
        function=function,
        query=features,
        key=key,
        key_target="labels",
        query_labels=labels,
        key_labels=key_labels,
        own_key=own_key,
        temperature=temperature,
        normalize=normalize,
        mask=mask,
        reduction=reduction,
        denominator=denominator,
    )
