"""Cross entropy with joint labels of class and rotation, against a tensor of these labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Work
from .row_losses import of_student

TRANSFORMS = 4
CPU_SHAPES = {
    (64, 100): "a branch of HSAKD on CIFAR-100: overhead is all",
    (256, 1000): "a branch of HSAKD on ImageNet",
}
CUDA_SHAPES = {
    (64, 100): "a branch of HSAKD on CIFAR-100: launches are all",
    (256, 1000): "a branch of HSAKD on ImageNet",
}


class Images(NamedTuple):
    joint_logits: Tensor  # [4 B, 4 N]
    target: Tensor  # [B] int64


def draw(images: int, classes: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Images:
    size = TRANSFORMS * images, TRANSFORMS * classes
    joint_logits = (torch.randn(size, generator=generator, device=device) * 3).to(dtype)
    return Images(joint_logits, torch.randint(classes, (images,), generator=generator, device=device))


def eager(batch: Images) -> Tensor:
    rotation = torch.arange(TRANSFORMS, device=batch.target.device)
    return F.cross_entropy(batch.joint_logits, (TRANSFORMS * batch.target[:, None] + rotation).flatten())


def work(images: int, classes: int, size: int) -> Work:
    found = of_student(TRANSFORMS * images, TRANSFORMS * classes, size)
    return Work(bytes={**found.bytes, "target": 8 * images}, operations=found.operations)


LOSSES = (
    Loss(
        "joint_cross_entropy",
        axes="images x classes",
        ours=lambda batch: kd.joint_cross_entropy(batch.joint_logits, batch.target),
        eager=eager,
        differentiated=("joint_logits",),
        draw=draw,
        work=work,
        shapes={"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES, "quick": CPU_SHAPES},
    ),
)
