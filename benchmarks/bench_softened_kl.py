"""softened_kl and kd_loss at T = 4 against the expressions they replace."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from . import row_losses
from .problem import Loss, Work
from .row_losses import COMMON, Rows, of_teacher

T = 4.0
SKEW = 0.1
CPU_SHAPES = {
    (64, 100): "a CIFAR-100 recipe: overhead is all",
    (256, 1000): "ImageNet's classes, the batch of one GPU",
    (1024, 1000): "ImageNet's classes in a large batch",
    (512, 32000): "the vocabulary of a language model: memory is all",
}
CUDA_SHAPES = {
    (128, 100): "a CIFAR-100 recipe: launches are all",
    (1024, 100): "the largest batch of such a recipe",
    (16384, 1000): "ImageNet's classes in a large batch: rows in registers",
    (4096, 21841): "all classes of ImageNet-21k: rows in shared memory",
    (8192, 32000): "the vocabulary of a language model: memory is all",
    (8192, 128256): "a large vocabulary: no row within one multiprocessor",
}
QUICK_SHAPES = {shape: CPU_SHAPES[shape] for shape in [(64, 100), (256, 1000)]}
SHAPES = {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES, "quick": QUICK_SHAPES}
OF_OPTIONS = row_losses.SHAPES


def eager_softened_kl(batch: Rows) -> Tensor:
    p = F.softmax(batch.teacher / T, dim=-1)
    return F.kl_div(F.log_softmax(batch.student / T, dim=-1), p, reduction="batchmean") * T * T


def eager_reverse_kd_loss(batch: Rows) -> Tensor:
    log_p, q = F.log_softmax(batch.teacher / T, dim=-1), F.softmax(batch.student / T, dim=-1)
    return F.cross_entropy(batch.student, batch.target) + F.kl_div(log_p, q, reduction="batchmean") * T * T


def eager_skewed_kl(batch: Rows) -> Tensor:
    p, q = F.softmax(batch.teacher / T, dim=-1), F.softmax(batch.student / T, dim=-1)
    return F.kl_div((SKEW * p + (1 - SKEW) * q).log(), p, reduction="batchmean") * T * T


def eager_total_variation(batch: Rows) -> Tensor:
    p, q = F.softmax(batch.teacher / T, dim=-1), F.softmax(batch.student / T, dim=-1)
    return (p - q).abs().sum() / (2 * len(p)) * T * T


def standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


def eager_standardized_kl(batch: Rows) -> Tensor:
    """Sun et al. 2024, as published."""
    return eager_softened_kl(batch._replace(student=standardized(batch.student), teacher=standardized(batch.teacher)))


def of_standardized(rows: int, classes: int, size: int) -> Work:
    """Beside the softmax: a mean and a deviation of both rows, and of the gradient its part along the student's logits."""
    work = of_teacher(rows, classes, size)
    more = {"standardization": 2 * 6 * rows * classes, "its gradient": 5 * rows * classes}
    return Work(bytes=work.bytes, operations={**work.operations, **more})


def eager_kd_loss(batch: Rows) -> Tensor:
    return F.cross_entropy(batch.student, batch.target) + eager_softened_kl(batch)


LOSSES = (
    Loss(
        "softened_kl",
        ours=lambda batch: kd.softened_kl(batch.student, batch.teacher, temperature=T),
        eager=eager_softened_kl,
        work=of_teacher,
        shapes=SHAPES,
        **COMMON,
    ),
    Loss(
        "kd_loss",
        ours=lambda batch: kd.kd_loss(batch.student, batch.teacher, batch.target, temperature=T),
        eager=eager_kd_loss,
        work=of_teacher,
        shapes=SHAPES,
        **COMMON,
    ),
    Loss(
        "kd_loss, reverse",
        ours=lambda batch: kd.kd_loss(batch.student, batch.teacher, batch.target, temperature=T, divergence="reverse"),
        eager=eager_reverse_kd_loss,
        work=of_teacher,
        shapes=OF_OPTIONS,
        **COMMON,
    ),
    Loss(
        "softened_kl, skew",
        ours=lambda batch: kd.softened_kl(batch.student, batch.teacher, temperature=T, skew=SKEW),
        eager=eager_skewed_kl,
        work=of_teacher,
        shapes=OF_OPTIONS,
        **COMMON,
    ),
    Loss(
        "softened_kl, tvd",
        ours=lambda batch: kd.softened_kl(batch.student, batch.teacher, temperature=T, divergence="tvd"),
        eager=eager_total_variation,
        work=of_teacher,
        shapes=OF_OPTIONS,
        **COMMON,
    ),
    Loss(
        "softened_kl, standardize",
        ours=lambda batch: kd.softened_kl(batch.student, batch.teacher, temperature=T, standardize=True),
        eager=eager_standardized_kl,
        work=of_standardized,
        shapes=OF_OPTIONS,
        **COMMON,
    ),
)
