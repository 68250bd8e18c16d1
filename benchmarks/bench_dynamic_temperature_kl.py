"""dynamic_temperature_kl, forward + backward, against the expressions it replaces. Shapes as in bench_label_loss.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .bench_label_loss import CPU_SHAPES as CPU_SHAPES
from .bench_label_loss import CUDA_SHAPES as CUDA_SHAPES
from .bench_label_loss import QUICK_SHAPES as QUICK_SHAPES


def eager_divergence(student: Tensor, teacher: Tensor, hardness: Tensor) -> Tensor:
    temperature = (4 + (hardness.mean() - hardness)).clamp(min=1)
    p = F.softmax(teacher / temperature.unsqueeze(-1), dim=-1)
    log_q = F.log_softmax(student / temperature.unsqueeze(-1), dim=-1)
    return (temperature**2 * F.kl_div(log_q, p, reduction="none").sum(-1)).mean()


@torch.no_grad()
def exchanged(teacher: Tensor, target: Tensor) -> Tensor:
    largest, label = teacher.argmax(-1, keepdim=True), target.unsqueeze(-1)
    of_largest, of_label = teacher.gather(-1, largest), teacher.gather(-1, label)
    return teacher.scatter(-1, largest, of_label).scatter(-1, label, of_largest)


def eager_flsw_ps(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    teacher = exchanged(teacher, target)
    with torch.no_grad():
        hardness = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return eager_divergence(student, teacher, hardness)


def eager_cwsm(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        hardness = 0.04 / (F.softmax(student, dim=-1).amax(-1) + 1e-3)
    return eager_divergence(student, teacher, hardness)


def ours_flsw_ps(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.dynamic_temperature_kl(student, teacher, target, adjust="ps")


def ours_cwsm(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.dynamic_temperature_kl(student, teacher, target, mode="cwsm", beta=0.04)


# What is called, what it replaces, and how many tensors of the size of the logits have to be moved.
LOSSES = {
    "dynamic_temperature_kl, flsw, ps": (ours_flsw_ps, eager_flsw_ps, 3),
    "dynamic_temperature_kl, cwsm": (ours_cwsm, eager_cwsm, 3),
}
