"""A step of self-training: pseudo labels of a teacher, and the student's cross entropy with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Work
from .row_losses import GRADIENT, SOFTMAX

THRESHOLD = 0.9
CPU_SHAPES = {
    (4, 19, 256, 512): "four images of Cityscapes at a quarter of their size: the classes of a pixel lie far apart",
    (256, 100, 1, 1): "images with one label: overhead is all",
}
CUDA_SHAPES = {
    (8, 19, 1024, 2048): "images of Cityscapes: the classes of a pixel lie far apart",
    (1024, 100, 1, 1): "images with one label: launches are all",
}


class Pixels(NamedTuple):
    student: Tensor  # [B, C, H, W] logits
    teacher: Tensor  # [B, C, H, W] logits


def draw(*shape: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Pixels:
    return Pixels(*((torch.randn(shape, generator=generator, device=device) * 3).to(dtype) for _ in range(2)))


def ours(batch: Pixels) -> Tensor:
    target, _ = kd.pseudo_labels(batch.teacher, threshold=THRESHOLD, dim=1)
    return kd.label_smoothing_loss(batch.student, target, smoothing=0.0, dim=1)


def eager(batch: Pixels) -> Tensor:
    confidence, target = batch.teacher.softmax(1).max(1)
    return F.cross_entropy(batch.student, torch.where(confidence >= THRESHOLD, target, -100))


def work(images: int, classes: int, height: int, width: int, size: int) -> Work:
    logits = images * classes * height * width
    return Work(
        bytes={"student": logits * size, "teacher": logits * size, "gradient": logits * size},
        operations={
            "softmax of student": SOFTMAX * logits,
            "softmax of teacher": SOFTMAX * logits,
            "gradient": GRADIENT * logits,
        },
    )


LOSSES = (
    Loss(
        "pseudo_labels",
        axes="images x classes x height x width",
        ours=ours,
        eager=eager,
        differentiated=("student",),
        draw=draw,
        work=work,
        shapes={"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES, "quick": CPU_SHAPES},
    ),
)
