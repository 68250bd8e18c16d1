"""multi_head_kl against the loop that it replaces, as HSAKD takes it: the class logits and the joint logits of three stages."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Work
from .row_losses import of_teacher

T = 3.0
STAGES = 3


class Heads(NamedTuple):
    """Logits [R, N] of the network and [R, 4N] of its stages, then those of the teacher."""

    student: Tensor
    student_stage_1: Tensor
    student_stage_2: Tensor
    student_stage_3: Tensor
    teacher: Tensor
    teacher_stage_1: Tensor
    teacher_stage_2: Tensor
    teacher_stage_3: Tensor


def draw(rows: int, classes: int, joint: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Heads:
    widths = 2 * [classes, *[joint] * STAGES]
    return Heads(*[(torch.randn(rows, c, generator=generator, device=device) * 3).to(dtype) for c in widths])


def work(rows: int, classes: int, joint: int, size: int) -> Work:
    parts = [of_teacher(rows, each, size) for each in (classes, *[joint] * STAGES)]
    return Work(
        bytes={term: sum(part.bytes[term] for part in parts) for term in parts[0].bytes},
        operations={term: sum(part.operations[term] for part in parts) for term in parts[0].operations},
    )


def ours(batch: Heads) -> Tensor:
    return kd.multi_head_kl(batch[: STAGES + 1], batch[STAGES + 1 :], temperature=T)


def eager(batch: Heads) -> Tensor:
    return sum(
        F.kl_div(F.log_softmax(s / T, dim=-1), F.softmax(t / T, dim=-1), reduction="batchmean") * T * T
        for s, t in zip(batch[: STAGES + 1], batch[STAGES + 1 :])
    )


SHAPES = {
    (256, 100, 400): "HSAKD on CIFAR-100: 64 images, four rotations of each",
    (1024, 1000, 4000): "the same on ImageNet: 256 images",
}
LOSSES = (
    Loss(
        "multi_head_kl",
        axes="rows x classes x joint classes",
        ours=ours,
        eager=eager,
        differentiated=Heads._fields[: STAGES + 1],
        draw=draw,
        work=work,
        shapes={"cpu": SHAPES, "cuda": SHAPES, "quick": {(256, 100, 400): SHAPES[256, 100, 400]}},
    ),
)
