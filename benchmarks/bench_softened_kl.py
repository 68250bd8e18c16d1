"""softened_kl and kd_loss at T = 4, forward + backward, against the expressions they replace.

Shapes: the batch of a CIFAR-100 recipe, where overhead is all; ImageNet's classes for a small and a large batch; the
vocabulary of a language model, where memory is all.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

CPU_SHAPES = [(64, 100), (256, 1000), (1024, 1000), (512, 32000)]
CUDA_SHAPES = [(128, 100), (1024, 100), (16384, 1000), (4096, 21841), (8192, 32000), (8192, 128256)]
QUICK_SHAPES = [(64, 100), (256, 1000)]
T = 4.0


def eager_softened_kl(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    p = F.softmax(teacher / T, dim=-1)
    return F.kl_div(F.log_softmax(student / T, dim=-1), p, reduction="batchmean") * T * T


def eager_kd_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(student, target) + eager_softened_kl(student, teacher, target)


def ours_softened_kl(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.softened_kl(student, teacher, temperature=T)


def ours_kd_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.kd_loss(student, teacher, target, temperature=T)


# What is called, what it replaces, and how many tensors of the size of the logits have to be moved.
LOSSES = {
    "softened_kl": (ours_softened_kl, eager_softened_kl, 3),
    "kd_loss": (ours_kd_loss, eager_kd_loss, 3),
}
