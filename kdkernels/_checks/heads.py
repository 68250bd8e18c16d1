"""Rules on lists of logits, one tensor per head, and on what comes with one number per head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._backend import forward_mode
from .common import FLOATS, STRIDED, constant, float_tensor, not_negative, readable, same_device
from .rows import MOST_CLASSES


def heads(function: str, students: Any, teachers: Any) -> None:
    """Student against teacher, head by head; all heads have the same rows. Teachers are constants."""
    for name, tensors in (("students", students), ("teachers", teachers)):
        if not isinstance(tensors, (list, tuple)):
            raise TypeError(
                f"{function}: {name} must be a list of tensors, one per head, got {type(tensors).__name__}"
            )
        if not tensors:
            raise ValueError(f"{function}: {name} must have at least 1 head, got an empty {type(tensors).__name__}")
    if len(students) != len(teachers):
        raise ValueError(
            f"{function}: students and teachers must have one tensor per head each, "
            f"got {len(students)} and {len(teachers)}"
        )
    first = students[0]
    for at, (student, teacher) in enumerate(zip(students, teachers)):
        if _is_usual(student, teacher, first):
            continue
        own, other = f"students[{at}]", f"teachers[{at}]"
        float_tensor(function, own, student)
        float_tensor(function, other, teacher)
        shape = student.shape
        if shape != teacher.shape:
            raise ValueError(
                f"{function}: {own} {list(shape)} and {other} {list(teacher.shape)} must have equal shapes"
            )
        if not shape or not shape[-1]:
            raise ValueError(f"{function}: {own} must be [..., C] with at least 1 class, got {list(shape)}")
        if shape[-1] > MOST_CLASSES:
            raise ValueError(f"{function}: at most {MOST_CLASSES} classes are possible, got {own} {list(shape)}")
        if shape[:-1] != first.shape[:-1]:
            raise ValueError(
                f"{function}: students[0] {list(first.shape)} and {own} {list(shape)} must have the same rows, "
                "all dimensions but the last"
            )
        if at:
            same_device(function, own, student, first, "students[0]")
        same_device(function, other, teacher, student, own)
        constant(function, other, teacher)


def _is_usual(student: Any, teacher: Any, first: Any) -> bool:
    """What needs no look at each rule."""
    return (
        type(student) is type(teacher) is type(first) is Tensor
        and student.dtype in FLOATS
        and teacher.dtype in FLOATS
        and student.layout is teacher.layout is STRIDED
        and not (student.is_nested or teacher.is_nested or teacher.requires_grad or forward_mode())
        and student.device == teacher.device == first.device
        and len(shape := student.shape) > 0
        and shape == teacher.shape
        and shape[:-1] == first.shape[:-1]
        and 0 < shape[-1] <= MOST_CLASSES
    )


def head_weights(function: str, weights: Any, students: list[Tensor]) -> list[float] | Tensor:
    """One number per head, or a constant tensor of them; a tensor in host memory comes back as numbers."""
    count, first = len(students), students[0]
    if weights is None:
        return [1.0] * count
    if isinstance(weights, Tensor):
        float_tensor(function, "weights", weights)
        if weights.shape != (count,):
            raise ValueError(
                f"{function}: weights must have one number per head, [{count}], got {list(weights.shape)}"
            )
        constant(function, "weights", weights)
        if not readable(weights):
            same_device(function, "weights", weights, first, "students[0]")
            return weights.detach()
        weights = weights.tolist()
    elif not isinstance(weights, (list, tuple)):
        raise TypeError(
            f"{function}: weights must be a list of numbers or a tensor, one per head, got {type(weights).__name__}"
        )
    if len(weights) != count:
        raise ValueError(f"{function}: weights must have one number per head, {count}, got {len(weights)}")
    return [not_negative(function, f"weights[{at}]", weight) for at, weight in enumerate(weights)]
