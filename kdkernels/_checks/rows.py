"""Rules on logits row by row, and on what comes with one value per row."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from .common import bool_mask, float_tensor, int64_range, int64_tensor, positive, readable, same_device


def class_dimension(function: str, logits: Tensor, dim: int) -> int:
    """`dim` counted from the front."""
    shape = logits.shape
    rank = len(shape)
    if rank == 0:
        raise ValueError(f"{function}: student must have at least 1 dimension, the classes, got a scalar")
    if type(dim) is not int:
        raise TypeError(f"{function}: dim must be an int, got {type(dim).__name__}")
    if not -rank <= dim < rank:
        raise ValueError(
            f"{function}: dim must be in {-rank}..{rank - 1} for logits {list(shape)}, got {dim}"
        )
    if shape[dim] == 0:
        raise ValueError(f"{function}: at least 1 class is needed, got logits {list(shape)} with dim={dim}")
    return dim % rank


def logits_alone(function: str, student: Any, dim: int) -> int:
    """A student without a teacher; returns `dim` counted from the front."""
    float_tensor(function, "student", student)
    return class_dimension(function, student, dim)


def pair(function: str, student: Any, teacher: Any, dim: int) -> int:
    """Student and teacher, row against row; returns `dim` counted from the front."""
    float_tensor(function, "student", student)
    float_tensor(function, "teacher", teacher)
    same_shape(function, student, teacher)
    same_device(function, "teacher", teacher, student)
    return class_dimension(function, student, dim)


def same_shape(function: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: student {list(student.shape)} and teacher {list(teacher.shape)} "
            "must have equal shapes"
        )


def several_classes(function: str, logits: Tensor, dim: int) -> None:
    if logits.shape[dim] < 2:
        raise ValueError(
            f"{function}: at least 2 classes are needed, got logits {list(logits.shape)} with dim={dim}"
        )


def temperature(function: str, value: Any, logits: Tensor, dim: int) -> None:
    """A number, or one per row."""
    if isinstance(value, Tensor):
        float_tensor(function, "temperature", value)
        row_tensor(function, "temperature", value, logits, dim)
        if readable(value) and not bool(((value > 0) & (value < inf)).all()):
            bad = value[~((value > 0) & (value < inf))][0].item()
            raise ValueError(f"{function}: temperature must be finite and > 0 in every row, got {bad}")
        return
    positive(function, "temperature", value)


def row_tensor(function: str, name: str, tensor: Tensor, logits: Tensor, dim: int) -> None:
    """One value per row: the shape of the logits without their class dimension."""
    shape = logits.shape
    rows = shape[:dim] + shape[dim + 1 :]
    if tensor.shape != rows:
        raise ValueError(
            f"{function}: {name} must have one value per row, {list(rows)} for logits {list(shape)} "
            f"with dim={dim}, got {list(tensor.shape)}"
        )
    same_device(function, name, tensor, logits)


def row_mask(function: str, mask: Any, logits: Tensor, dim: int) -> None:
    bool_mask(function, mask)
    row_tensor(function, "mask", mask, logits, dim)


def row_weight(function: str, weight: Any, logits: Tensor, dim: int) -> None:
    float_tensor(function, "row_weight", weight)
    row_tensor(function, "row_weight", weight, logits, dim)


def confidence(
    function: str, value: Any, logits: Tensor, target: Tensor, dim: int, ignore_index: int
) -> None:
    """Probabilities, in the rows whose label is not ignored."""
    float_tensor(function, "confidence", value)
    row_tensor(function, "confidence", value, logits, dim)
    if not readable(value) or not readable(target) or not value.numel():
        return
    lowest, highest = value.aminmax()
    if lowest.item() >= 0 and highest.item() <= 1:  # neither, where there is a NaN
        return
    bad = ~((value >= 0) & (value <= 1)) & (target != ignore_index)
    if bool(bad.any()):
        raise ValueError(f"{function}: confidence must be in [0, 1] in every row, got {value[bad][0].item()}")


def labels(function: str, target: Any, logits: Tensor, dim: int, ignore_index: Any) -> None:
    int64_tensor(function, "target", target, " class labels")
    row_tensor(function, "target", target, logits, dim)
    if type(ignore_index) is not int:
        raise TypeError(f"{function}: ignore_index must be an int, got {type(ignore_index).__name__}")


def label_range(function: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its labels itself, has refused."""
    if not readable(target):
        return
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        raise ValueError(
            f"{function}: target contains {target[bad][0].item()}, valid labels are 0..{classes - 1} "
            f"(or ignore_index={ignore_index})"
        ) from None


def class_range(function: str, target: Tensor, classes: int) -> None:
    """Labels that no function may ignore."""
    int64_range(function, "target", target, classes, "labels")


def permutation(function: str, value: Any, logits: Tensor) -> None:
    """A class for each class, whether each occurs once: see `permutes_classes`."""
    int64_tensor(function, "permutation", value, " classes")
    if value.shape != logits.shape:
        raise ValueError(
            f"{function}: permutation must have the shape of the logits, {list(logits.shape)}, "
            f"got {list(value.shape)}"
        )
    same_device(function, "permutation", value, logits)


def permutes_classes(function: str, permutation: Tensor, dim: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its permutations itself, refused."""
    if not readable(permutation):
        return
    rows = permutation.movedim(dim, -1)
    classes = rows.shape[-1]
    bad = (rows.sort().values != torch.arange(classes)).any(-1)
    if bool(bad.any()):
        row = bad.flatten().nonzero()[0].item()
        raise ValueError(
            f"{function}: permutation must hold each class 0..{classes - 1} once in every row, "
            f"row {row} does not"
        ) from None


def host_generator(function: str, value: Any) -> None:
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{function}: generator must be a torch.Generator, got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(
            f"{function}: generator must be on the CPU, where drawing does not stall the device, "
            f"got one on {value.device}"
        )
