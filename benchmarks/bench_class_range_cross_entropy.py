"""Cross entropy of a task's classes, a fifth of all, against that of a slice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Work
from .row_losses import Rows, of_student
from .row_losses import draw as draw_rows

CPU_SHAPES = {
    (256, 100): "a task of CIFAR-100: overhead is all",
    (1024, 1000): "a task of ImageNet: the gradient of the other classes is most of what is written",
}
CUDA_SHAPES = {
    (256, 100): "a task of CIFAR-100: launches are all",
    (16384, 1000): "a task of ImageNet: the gradient of the other classes is most of what is written",
}


def span(classes: int) -> tuple[int, int]:
    return classes // 5, 2 * classes // 5


def draw(rows: int, classes: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Rows:
    start, stop = span(classes)
    batch = draw_rows(rows, classes, dtype, device, generator)
    return batch._replace(target=start + batch.target % (stop - start))


def ours(batch: Rows) -> Tensor:
    return kd.class_range_cross_entropy(batch.student, batch.target, *span(batch.student.shape[1]))


def eager(batch: Rows) -> Tensor:
    start, stop = span(batch.student.shape[1])
    return F.cross_entropy(batch.student[:, start:stop], batch.target - start)


def work(rows: int, classes: int, size: int) -> Work:
    start, stop = span(classes)
    found = of_student(rows, stop - start, size)
    return Work(bytes={**found.bytes, "gradient": rows * classes * size}, operations=found.operations)


LOSSES = (
    Loss(
        "class_range_cross_entropy",
        axes="rows x all classes",
        ours=ours,
        eager=eager,
        differentiated=("student",),
        draw=draw,
        work=work,
        shapes={"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES, "quick": CPU_SHAPES},
    ),
)
