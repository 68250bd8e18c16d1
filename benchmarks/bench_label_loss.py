"""Losses whose target follows from the label, forward + backward, against the expressions they replace.

Shapes: a batch of a CIFAR-100 recipe, where overhead is all; ImageNet's classes; the vocabulary of a language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

CPU_SHAPES = [(128, 100), (1024, 1000), (512, 32000)]
CUDA_SHAPES = [(128, 100), (1024, 100), (16384, 1000), (8192, 32000)]
QUICK_SHAPES = [(128, 100), (1024, 1000)]


def eager_virtual_teacher(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    classes = student.shape[-1]
    made = torch.full_like(student, 0.01 / (classes - 1)).scatter_(-1, target.unsqueeze(-1), 0.99)
    u = F.softmax(made / 20, dim=-1)
    kl = F.kl_div(F.log_softmax(student, dim=-1), u, reduction="batchmean")
    return F.cross_entropy(student, target) + kl


def eager_label_smoothing(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(student, target, label_smoothing=0.1)


def eager_cwtm(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    confidence = F.softmax(teacher, dim=-1).amax(-1)
    return (confidence / confidence.sum() * F.cross_entropy(student, target, reduction="none")).sum()


def ours_virtual_teacher(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.virtual_teacher_loss(student, target)


def ours_label_smoothing(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.label_smoothing_loss(student, target)


def ours_cwtm(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.cwtm_loss(student, target, teacher)


# What is called, what it replaces, and how many tensors of the size of the logits have to be moved.
LOSSES = {
    "virtual_teacher_loss": (ours_virtual_teacher, eager_virtual_teacher, 2),
    "label_smoothing_loss": (ours_label_smoothing, eager_label_smoothing, 2),
    "cwtm_loss": (ours_cwtm, eager_cwtm, 3),
}
