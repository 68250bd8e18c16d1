"""Labels that a network makes for itself or for another one."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, ops, reference


def pseudo_labels(
    logits: Tensor,  # [..., C], any float dtype, classes along `dim`
    *,
    threshold: float | Tensor = 0.0,  # in [0, 1]; a tensor: [C], the device of logits
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    dim: int = -1,
) -> tuple[Tensor, Tensor]:
    r"""The likeliest class of each row, where it is likely enough, and its probability.

    That is::

        confidence, labels = (logits / temperature).softmax(dim).max(dim)
        labels = torch.where(confidence >= threshold, labels, ignore_index)

    in one sweep over memory and without a tensor of probabilities. Both results have the row shape and no gradient. Losses
    with the same `ignore_index` leave out the rows below the threshold.

    Arguments:
        logits: `[..., C]`; float32, float16, bfloat16 or float64. Of equal logits the lowest class is the likeliest.
        threshold: the least probability of a label, in [0, 1]: a number for all classes, or a float tensor `[C]` with one
            for each, of which that of the likeliest class counts. 0 keeps every row. It is compared in the arithmetic of
            the probabilities, float32 (float64 for float64 logits).
        temperature: finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs.
        ignore_index: label of the rows below the threshold.
        dim: the class dimension.

    Returns:
        (labels, confidence): int64, and float32 (float64 for float64 logits). The confidence is that of the likeliest class
        in all rows, those below the threshold too. A row in which a logit is NaN or +inf, or all are -inf, has no
        probabilities: its confidence is NaN and its label `ignore_index`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
        workshop; with a threshold: Sohn et al., "FixMatch", NeurIPS 2020, https://arxiv.org/abs/2001.07685, equation 4; with
        one for each class: Zou, Yu, Kumar, Wang, "Unsupervised Domain Adaptation for Semantic Segmentation via
        Class-Balanced Self-Training", ECCV 2018, https://arxiv.org/abs/1810.07911.

    >>> labels, confidence = pseudo_labels(torch.tensor([[1.0, 4.0, 2.0], [1.0, 0.9, 0.8]]), threshold=0.5)
    >>> labels, confidence
    (tensor([   1, -100]), tensor([0.8438, 0.3672]))
    """
    function = "pseudo_labels"
    _checks.float_tensor(function, "logits", logits)
    logits = logits.detach()  # from forward-mode derivatives too
    dim = _checks.class_dimension(function, logits, dim)
    threshold = _checks.threshold(function, threshold, logits, dim)
    temperature = _checks.one_temperature(function, temperature, logits, "logits")
    ignore_index = _checks.integer(function, "ignore_index", ignore_index)
    options = dict(threshold=threshold, temperature=temperature, ignore_index=ignore_index, dim=dim)
    # The op takes numbers.
    unread = isinstance(temperature, Tensor)
    if not _backend.use_library(function, logits, differentiable=False) or unread:
        return reference.pseudo_labels(logits, **options)
    return ops.pseudo_labels(logits=logits, **options)
