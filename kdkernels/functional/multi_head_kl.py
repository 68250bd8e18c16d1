"""The divergences of several heads in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _backend, _checks, ops, reference


def multi_head_kl(
    students: Sequence[Tensor],  # of [..., C_i] logits, any float dtype; the same rows in each
    teachers: Sequence[Tensor],  # the same shapes, logits; constant
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    weights: Sequence[float] | Tensor | None = None,  # >= 0, one per head
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Softened forward KL of several heads, of different widths, each against the head beside it of a teacher.

    With `s_i` and `t_i` the logits of head i and R the number of its rows::

        sum_i weights_i * T^2 / R * sum_rows KL(softmax(t_i / T) || softmax(s_i / T))

    For logits `[R, C_i]` that is::

        sum(
            w * T * T * F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="batchmean")
            for w, s, t in zip(weights, students, teachers)
        )

    in one sweep over the logits of all heads: one launch on a GPU (for every 16 heads), one parallel region on a CPU. No
    softmax is stored, the gradients are all that is left.

    Arguments:
        students: a list or tuple of logits `[..., C_i]`, one tensor per head, classes last; float32, float16, bfloat16 or
            float64, also mixed. All dimensions but the last are the same in each head. `-inf` is a class of probability 0.
        teachers: as many logits of the same shapes and device, any of those dtypes. They are constants: one that requires
            grad is a ValueError, give `teacher.detach()`.
        temperature: T, finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs. 3 is the paper's.
        weights: one finite number >= 0 per head, or a constant float tensor `[number of heads]`; None: 1 each, as in the
            paper. A head of weight 0 adds exactly 0, even where it is infinite. A tensor that is not read makes the loss
            NaN where a weight is negative.
        denominator: what the means divide by instead of R, finite and > 0: the rows of all micro-batches and processes. Or
            a constant tensor of one number, on any device, which is not read: the loss is NaN where it is not > 0.
        return_parts: also return `{"heads": [number of heads]}`, detached and on the device: each head before its weight,
            T^2 included.

    Returns:
        float32, or float64 where any logits are float64; a scalar, 0 where there are no rows. Gradients have the dtypes of
        their tensors.

    Raises:
        ValueError: shapes, numbers of heads, devices or values out of range. TypeError: dtypes or types.

    Source:
        Yang, An, Cai, Xu, "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021,
        https://arxiv.org/abs/2107.13715: its losses kl_p, of the class logits, and kl_q, of the joint logits of each
        stage.

    >>> students = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0]])]
    >>> teachers = [torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[1.0, 0.0]])]
    >>> multi_head_kl(students, teachers, return_parts=True)
    (tensor(0.4901), {'heads': tensor([0.4901, 0.0000])})
    """
    function = "multi_head_kl"
    _checks.heads(function, students, teachers)
    temperature = _checks.one_temperature(function, temperature, students[0], "students[0]")
    weights = _checks.head_weights(function, weights, students)
    if denominator is not None:
        denominator = _checks.denominator(function, denominator)
    return_parts = _checks.flag(function, "return_parts", return_parts)

    # The op takes a number as temperature.
    if not _backend.use_library(function, students[0]) or isinstance(temperature, Tensor):
        return reference.multi_head_kl(
            students,
            teachers,
            temperature=temperature,
            weights=weights,
            denominator=denominator,
            return_parts=return_parts,
        )

    loss, heads = ops.multi_head_kl.multi_head_kl(
        students=students,
        teachers=teachers,
        temperature=temperature,
        weights=weights,
        denominator=denominator,
    )
    return (loss, {"heads": heads}) if return_parts else loss
