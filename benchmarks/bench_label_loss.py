"""Losses whose target follows from the label, against the expressions they replace."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss
from .row_losses import COMMON, SHAPES, Rows, of_student, of_teacher


def eager_virtual_teacher(batch: Rows) -> Tensor:
    classes = batch.student.shape[-1]
    made = torch.full_like(batch.student, 0.01 / (classes - 1)).scatter_(-1, batch.target.unsqueeze(-1), 0.99)
    u = F.softmax(made / 20, dim=-1)
    kl = F.kl_div(F.log_softmax(batch.student, dim=-1), u, reduction="batchmean")
    return F.cross_entropy(batch.student, batch.target) + kl


def eager_cwtm(batch: Rows) -> Tensor:
    confidence = F.softmax(batch.teacher, dim=-1).amax(-1)
    return (confidence / confidence.sum() * F.cross_entropy(batch.student, batch.target, reduction="none")).sum()


LOSSES = (
    Loss(
        "virtual_teacher_loss",
        ours=lambda batch: kd.virtual_teacher_loss(batch.student, batch.target),
        eager=eager_virtual_teacher,
        work=of_student,
        shapes=SHAPES,
        **COMMON,
    ),
    Loss(
        "label_smoothing_loss",
        ours=lambda batch: kd.label_smoothing_loss(batch.student, batch.target),
        eager=lambda batch: F.cross_entropy(batch.student, batch.target, label_smoothing=0.1),
        work=of_student,
        shapes=SHAPES,
        **COMMON,
    ),
    # Plain cross entropy: the loss that most packages have a fast form of.
    Loss(
        "label_smoothing_loss, none",
        ours=lambda batch: kd.label_smoothing_loss(batch.student, batch.target, smoothing=0.0),
        eager=lambda batch: F.cross_entropy(batch.student, batch.target),
        work=of_student,
        shapes=SHAPES,
        **COMMON,
    ),
    Loss(
        "cwtm_loss",
        ours=lambda batch: kd.cwtm_loss(batch.student, batch.target, batch.teacher),
        eager=eager_cwtm,
        work=of_teacher,
        shapes=SHAPES,
        **COMMON,
    ),
)
