"""dynamic_temperature_kl against the expressions it replaces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss
from .row_losses import COMMON, SHAPES, Rows, of_teacher


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


def eager_flsw_ps(batch: Rows) -> Tensor:
    teacher = exchanged(batch.teacher, batch.target)
    with torch.no_grad():
        hardness = 1 - F.cosine_similarity(batch.student, teacher, dim=-1)
    return eager_divergence(batch.student, teacher, hardness)


def eager_cwsm(batch: Rows) -> Tensor:
    with torch.no_grad():
        hardness = 0.04 / (F.softmax(batch.student, dim=-1).amax(-1) + 1e-3)
    return eager_divergence(batch.student, batch.teacher, hardness)


LOSSES = (
    Loss(
        "dynamic_temperature_kl, flsw, ps",
        ours=lambda batch: kd.dynamic_temperature_kl(*batch, adjust="ps"),
        eager=eager_flsw_ps,
        work=of_teacher,
        shapes=SHAPES,
        **COMMON,
    ),
    Loss(
        "dynamic_temperature_kl, cwsm",
        ours=lambda batch: kd.dynamic_temperature_kl(*batch, mode="cwsm", beta=0.04),
        eager=eager_cwsm,
        work=of_teacher,
        shapes=SHAPES,
        **COMMON,
    ),
)
