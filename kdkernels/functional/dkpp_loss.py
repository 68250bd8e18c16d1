"""Dark knowledge with permuted predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._backend import is_sharded
from .._names import REDUCTIONS
from .._shards import row_loss
from .._shared.permutation import draw_permutation
from .softened_kl import soft_cross_entropy


def dkpp_loss(
    student: Tensor,  # [..., C] logits, any float dtype, classes along `dim`
    teacher: Tensor,  # the same shape and device, logits
    *,
    permutation: Tensor | None = None,  # the same shape, integers
    generator: torch.Generator | None = None,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    shared_classes: int | None = None,
    mask: Tensor | None = None,  # row shape, bool
    row_weight: Tensor | None = None,  # row shape, float
    reduction: str = "batchmean",
    denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    dim: int = -1,
) -> Tensor:
    r"""Soft cross entropy with the teacher's probabilities shuffled, all but the largest of each row.

    The target keeps the teacher's confidence, entropy and sorted values; which class is like which is lost.
    With `q = softmax(student / T)`, `p = softmax(teacher / T)` and a permutation `phi` per row::

        - w T^2 sum_c p_phi(c) log q_c

    For logits `[N, C]` that is::

        p = F.softmax(teacher / T, -1).gather(-1, permutation)
        T * T * F.cross_entropy(student / T, p)

    in one sweep over memory. With `permutation=None` nothing is stored: a class finds its `phi(c)` from a
    seed, its row's number and itself.

    Arguments:
        student: logits `[..., C]`; float32, float16, bfloat16 or float64. `-inf` is a class of probability 0.
        teacher: logits, same shape (but for the classes, with `shared_classes`) and device, any of those dtypes; a
            constant.
        permutation: class c gets the teacher's probability of class `permutation[..., c]` (along `dim`); of any
            integer dtype, each of 0..C-1 once per row, applied as it is. Another is a ValueError on the CPU; on
            CUDA, where asking would stall, a class out of range makes its row NaN. None draws one per row and
            call, uniform among those that keep the first of the teacher's largest logits where it is.
        generator: on the CPU; one seed is drawn from it, or from torch's default generator. Inside
            `torch.compile` only the default one serves, and inside `torch.vmap` give the permutation.
        temperature: T, finite and > 0, or a constant tensor of one number; 1 is the paper's. A tensor that is not
            read (see `kdkernels.functional`) costs the teacher's logits and the permutation in memory.
        shared_classes: compare only so many classes, the first of both, whose widths may then differ (padded
            vocabularies). The permutation is one of these, and has their number in the place of C.
        mask: bool, row shape. False rows are not computed and not counted.
        row_weight: float, row shape. Multiplies a row's loss and does not change the count.
        reduction: `"batchmean"` (sum over rows / counted rows, alias `"mean"`), `"sum"`, `"none"` (row shape)
            or `"elementmean"` (sum / (counted rows * C)).
        denominator: what a mean divides by in place of the counted rows, such as the rows of all micro-batches and
            processes. Finite and > 0, or a constant tensor of one number (see `kdkernels.functional`).
        dim: the class dimension.

    Returns:
        float32, or float64 if either tensor of logits is float64: a scalar, or the row shape for `"none"`.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018,
        https://arxiv.org/abs/1805.04770, equation 11. Temperature is an extension.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    >>> dkpp_loss(student, teacher, permutation=torch.tensor([[1, 0, 2]]))
    tensor(0.5180)
    """
    if is_sharded(student):
        return row_loss(dkpp_loss, locals(), "mask")
    dim = _checks.pair("dkpp_loss", student, teacher, dim, equal_classes=shared_classes is None)
    if shared_classes is not None:
        shared_classes = _checks.shared_classes("dkpp_loss", shared_classes, student, teacher, dim)
        student, teacher = (logits.narrow(dim, 0, shared_classes) for logits in (student, teacher))
    if permutation is not None:
        permutation = _checks.permutation("dkpp_loss", permutation, student)
    if generator is not None:
        _checks.host_generator("dkpp_loss", generator)
    temperature = _checks.one_temperature("dkpp_loss", temperature, student, "student")
    _checks.one_of("dkpp_loss", "reduction", reduction, REDUCTIONS)
    if denominator is not None:
        denominator = _checks.denominator("dkpp_loss", denominator, reduction)
    if mask is not None:
        _checks.row_mask("dkpp_loss", mask, student, dim)
    if row_weight is not None:
        _checks.row_weight("dkpp_loss", row_weight, student, dim)

    if not _backend.use_library("dkpp_loss", student):
        return reference.dkpp_loss(
            student,
            teacher,
            permutation=permutation,
            generator=generator,
            temperature=temperature,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )

    if isinstance(temperature, Tensor):  # the op takes a number
        if permutation is None:
            permutation = draw_permutation(teacher.detach(), generator, dim)
        else:
            _checks.permutes_classes("dkpp_loss", permutation, dim)
        return soft_cross_entropy(
            student,
            teacher.detach().gather(dim, permutation),
            temperature=temperature,
            mask=mask,
            row_weight=row_weight,
            reduction=reduction,
            denominator=denominator,
            dim=dim,
        )

    return ops.dkpp_loss(
        function="dkpp_loss",
        student=student,
        teacher=teacher,
        permutation=permutation,
        generator=generator,
        temperature=temperature,
        mask=mask,
        row_weight=row_weight,
        reduction=reduction,
        denominator=denominator,
        dim=dim,
    )
