"""Cross entropy with joint labels of a class and a transform."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._names import REDUCTIONS
from .._shared.label_targets import over_rows


def joint_cross_entropy(
    joint_logits: Tensor,  # [transforms * B, transforms * N], any float dtype
    target: Tensor,  # [B], integer labels in [0, N) or ignore_index
    *,
    transforms: int = 4,
    ignore_index: int = -100,
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
) -> Tensor:
    r"""Cross entropy of a head that tells class and transform of an image together.

    With `M = transforms`, row `M b + r` holds the logits of image b under transform r (rotations by quarter turns, say), and
    column `M n + r` is class n under transform r. That is::

        label = (M * target[:, None] + torch.arange(M)).flatten()
        F.cross_entropy(joint_logits, label)

    in one sweep and without the tensor of labels.

    Arguments:
        joint_logits: `[M B, M N]`; float32, float16, bfloat16 or float64.
        target: the class of each image, `[B]` (or `[B, 1]`), of any integer dtype, in [0, N) or `ignore_index`. Another
            label is a ValueError on the CPU; on CUDA, where asking would stall, it makes its M rows NaN.
        transforms: M >= 1; rows and columns are multiples of it.
        ignore_index: label of images all of whose rows drop out of the loss and of its count.
        reduction: `"batchmean"` (mean over the rows that are not ignored, alias `"mean"`), `"sum"` or
            `"none"` (`[M B]`). A row has one value: `"elementmean"` is `"batchmean"`.
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).

    Returns:
        float32, or float64 for float64 logits: a scalar, or `[M B]` for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Yang, An, Cai, Xu, "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021,
        https://arxiv.org/abs/2107.13715, section 3.1.

    >>> joint_logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])  # 1 image, 2 transforms, 2 classes
    >>> joint_cross_entropy(joint_logits, torch.tensor([1]), transforms=2)
    tensor(2.4402)
    """
    function = "joint_cross_entropy"
    transforms = _checks.at_least_one(function, "transforms", transforms)
    target = _checks.joint_labels(function, joint_logits, target, transforms)
    ignore_index = _checks.integer(function, "ignore_index", ignore_index)
    _checks.one_of(function, "reduction", reduction, REDUCTIONS)
    reduction = over_rows(reduction)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator, reduction)

    if not _backend.use_library(function, joint_logits):
        return reference.joint_cross_entropy(
            joint_logits,
            target,
            transforms=transforms,
            ignore_index=ignore_index,
            reduction=reduction,
            denominator=denominator,
        )
    loss, _ = ops.label_loss(
        function=function,
        student=joint_logits,
        target=target,
        transforms=transforms,
        ignore_index=ignore_index,
        denominator=denominator,
        reduction=reduction,
        dim=1,
    )
    return loss
