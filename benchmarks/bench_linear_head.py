"""Losses of a linear head, from its features to the gradients of features and weight: the problem of packages that fuse the
head into the loss. Ours and eager PyTorch hold the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Work

SHAPES = {
    "cpu": {(256, 64, 1000): "ImageNet's classes behind a small network"},
    "cuda": {(4096, 2048, 32000): "a vocabulary", (4096, 4096, 128256): "a large vocabulary, where logits are most of memory"},
    "quick": {(128, 64, 100): "a CIFAR-100 network"},
}


class Heads(NamedTuple):
    features: Tensor  # [N, D]
    weight: Tensor  # [C, D]
    teacher_features: Tensor  # [N, D]
    teacher_weight: Tensor  # [C, D]
    target: Tensor  # [N] int64


def draw(
    rows: int, width: int, classes: int, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Heads:
    def normal(count: int, scale: float) -> Tensor:
        return (torch.randn(count, width, generator=generator, device=device) * scale).to(dtype)

    # Logits of standard deviation 2.
    tensors = [normal(count, scale) for _ in range(2) for count, scale in ((rows, 2.0), (classes, width**-0.5))]
    return Heads(*tensors, torch.randint(classes, (rows,), generator=generator, device=device))


def of_student(rows: int, width: int, classes: int, size: int) -> Work:
    product = 2 * rows * width * classes
    return Work(
        bytes={
            "features": rows * width * size,
            "weight": classes * width * size,
            "gradient of features": rows * width * size,
            "gradient of weight": classes * width * size,
        },
        operations={"logits": product, "gradient of features": product, "gradient of weight": product},
        matrix=(rows, width, classes),
    )


def of_teacher(rows: int, width: int, classes: int, size: int) -> Work:
    work = of_student(rows, width, classes, size)
    teacher = {"teacher's features": rows * width * size, "teacher's weight": classes * width * size}
    logits = {"teacher's logits": 2 * rows * width * classes}
    return Work(teacher | work.bytes, logits | work.operations, work.matrix)


def logits(batch: Heads) -> tuple[Tensor, Tensor]:
    return F.linear(batch.features, batch.weight), F.linear(batch.teacher_features, batch.teacher_weight)


def eager_softened_kl(batch: Heads) -> Tensor:
    student, teacher = logits(batch)
    return F.kl_div(F.log_softmax(student, dim=-1), F.softmax(teacher, dim=-1), reduction="batchmean")


def ours_cross_entropy(batch: Heads) -> Tensor:
    return kd.label_smoothing_loss(F.linear(batch.features, batch.weight), batch.target, smoothing=0.0)


COMMON = {
    "axes": "rows x width x classes",
    "differentiated": ("features", "weight"),
    "draw": draw,
    "shapes": SHAPES,
}
LOSSES = (
    Loss(
        "softened_kl of a linear head",
        ours=lambda batch: kd.softened_kl(*logits(batch), temperature=1.0),
        eager=eager_softened_kl,
        work=of_teacher,
        **COMMON,
    ),
    Loss(
        "cross entropy of a linear head",
        ours=ours_cross_entropy,
        eager=lambda batch: F.cross_entropy(F.linear(batch.features, batch.weight), batch.target),
        work=of_student,
        **COMMON,
    ),
)
