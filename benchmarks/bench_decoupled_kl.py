"""decoupled_kl against the expression it replaces, as its authors write it: masks, softmax, cat, kl_div."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss
from .row_losses import COMMON, SHAPES, Rows, of_teacher

TEMPERATURE, ALPHA, BETA = 4.0, 1.0, 8.0


def eager_decoupled(batch: Rows) -> Tensor:
    is_label = torch.zeros_like(batch.student).scatter_(1, batch.target.unsqueeze(1), 1).bool()
    others = torch.ones_like(batch.student).scatter_(1, batch.target.unsqueeze(1), 0).bool()

    def binary(logits: Tensor) -> Tensor:
        p = F.softmax(logits / TEMPERATURE, dim=1)
        return torch.cat([(p * is_label).sum(1, keepdim=True), (p * others).sum(1, keepdim=True)], dim=1)

    tckd = F.kl_div(torch.log(binary(batch.student)), binary(batch.teacher), reduction="batchmean")
    log_q = F.log_softmax(batch.student / TEMPERATURE - 1000.0 * is_label, dim=1)
    p = F.softmax(batch.teacher / TEMPERATURE - 1000.0 * is_label, dim=1)
    nckd = F.kl_div(log_q, p, reduction="batchmean")
    return TEMPERATURE**2 * (ALPHA * tckd + BETA * nckd)


LOSSES = (
    Loss(
        "decoupled_kl",
        ours=lambda batch: kd.decoupled_kl(
            batch.student, batch.teacher, batch.target, temperature=TEMPERATURE, alpha=ALPHA, beta=BETA
        ),
        eager=eager_decoupled,
        work=of_teacher,
        shapes=SHAPES,
        **COMMON,
    ),
)
