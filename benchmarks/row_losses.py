"""What the families of row losses share: their batch, and what has to be moved and computed for a row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Work

AXES = "rows x classes"
# A batch of a CIFAR-100 recipe; ImageNet's classes; the vocabulary of a language model.
CPU_SHAPES = {
    (128, 100): "a CIFAR-100 recipe: overhead is all",
    (1024, 1000): "ImageNet's classes in a large batch",
    (512, 32000): "a vocabulary: memory is all",
}
CUDA_SHAPES = {
    (128, 100): "a CIFAR-100 recipe: launches are all",
    (1024, 100): "the largest batch of such a recipe",
    (16384, 1000): "ImageNet's classes in a large batch: rows in registers",
    (8192, 32000): "a vocabulary: memory is all",
}
QUICK_SHAPES = {shape: CPU_SHAPES[shape] for shape in [(128, 100), (1024, 1000)]}
SHAPES = {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES, "quick": QUICK_SHAPES}

# Operations per class. A softmax: scale, maximum, subtract, exponential, sum. A divergence: subtract, multiply, add.
SOFTMAX, DIVERGENCE = 5, 3
# Of the student's logit: normalise both sides, subtract, scale.
GRADIENT = 4


class Rows(NamedTuple):
    student: Tensor  # [N, C] logits
    teacher: Tensor  # [N, C] logits
    target: Tensor  # [N] int64


def draw(rows: int, classes: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> Rows:
    student, teacher = (
        (torch.randn(rows, classes, generator=generator, device=device) * 3).to(dtype) for _ in range(2)
    )
    return Rows(student, teacher, torch.randint(classes, (rows,), generator=generator, device=device))


def of_student(rows: int, classes: int, size: int) -> Work:
    """A target made from the label."""
    logits, labels = rows * classes, 8 * rows
    return Work(
        bytes={"student": logits * size, "target": labels, "gradient": logits * size},
        operations={"softmax of student": SOFTMAX * logits, "gradient": GRADIENT * logits},
    )


def of_teacher(rows: int, classes: int, size: int) -> Work:
    """A target made from the teacher's logits."""
    logits = rows * classes
    return Work(
        bytes={"student": logits * size, "teacher": logits * size, "gradient": logits * size},
        operations={
            "softmax of student": SOFTMAX * logits,
            "softmax of teacher": SOFTMAX * logits,
            "divergence": DIVERGENCE * logits,
            "gradient": GRADIENT * logits,
        },
    )


COMMON = {"axes": AXES, "draw": draw, "differentiated": ("student",)}
