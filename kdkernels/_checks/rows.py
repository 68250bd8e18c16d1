"""Rules on logits row by row, and on what comes with one value per row."""

from __future__ import annotations

import warnings
from math import inf
from typing import Any

import torch
from torch import Tensor

from .common import (
    FLOATS,
    NUMBERS,
    STRIDED,
    bool_mask,
    constant,
    flag,
    float_tensor,
    integer,
    integer_range,
    integer_tensor,
    number,
    one_temperature,
    positive,
    readable,
    same_device,
    unit_interval,
)

MOST_CLASSES = 2**24  # to which float32 counts without a gap
OF_SOFT_LABELS = 'probabilities of classes are for soft_cross_entropy(student, target, teacher_kind="probs")'


def class_dimension(function: str, logits: Tensor, dim: int) -> int:
    """`dim` counted from the front."""
    shape = logits.shape
    rank = len(shape)
    if rank == 0:
        raise ValueError(f"{function}: student must have at least 1 dimension, the classes, got a scalar")
    dim = integer(function, "dim", dim)
    if not -rank <= dim < rank:
        raise ValueError(
            f"{function}: dim must be in {-rank}..{rank - 1} for logits {list(shape)}, got {dim}"
        )
    if not 0 < shape[dim] <= MOST_CLASSES:
        limit = "at least 1 class is needed" if not shape[dim] else f"at most {MOST_CLASSES} classes are possible"
        raise ValueError(f"{function}: {limit}, got logits {list(shape)} with dim={dim}")
    return dim % rank


def logits_alone(function: str, student: Any, dim: int) -> int:
    """A student without a teacher; returns `dim` counted from the front."""
    float_tensor(function, "student", student)
    return class_dimension(function, student, dim)


def pair(function: str, student: Any, teacher: Any, dim: int, *, equal_classes: bool = True) -> int:
    """Student and teacher, row against row; returns `dim` counted from the front."""
    if (
        type(student) is type(teacher) is Tensor
        and not (student.is_nested or teacher.is_nested)
        and student.layout is teacher.layout is STRIDED
        and student.dtype in FLOATS
        and teacher.dtype in FLOATS
        and student.device == teacher.device
        and type(dim) is int
        and -len(shape := student.shape) <= dim < len(shape)
        and shape == teacher.shape
        and 0 < shape[dim] <= MOST_CLASSES
    ):
        return dim % len(shape)
    float_tensor(function, "student", student)
    float_tensor(function, "teacher", teacher)
    if equal_classes:
        same_shape(function, student, teacher, dim)
        same_device(function, "teacher", teacher, student)
        return class_dimension(function, student, dim)
    dim = class_dimension(function, student, dim)
    if not _differ_in_classes(student, teacher, dim):
        raise ValueError(
            f"{function}: student {list(student.shape)} and teacher {list(teacher.shape)} must have equal shapes "
            f"but for their classes, with dim={dim}"
        )
    same_device(function, "teacher", teacher, student)
    return dim


def shared_classes(function: str, value: Any, student: Tensor, teacher: Tensor, dim: int) -> int:
    """How many classes are compared, the first of both."""
    value = integer(function, "shared_classes", value)
    ours, theirs = student.shape[dim], teacher.shape[dim]
    if not 1 <= value <= min(ours, theirs):
        raise ValueError(
            f"{function}: shared_classes must be at least 1 and at most the number of classes of student, {ours}, "
            f"and of teacher, {theirs}, got {value}"
        )
    return value


def same_shape(function: str, student: Tensor, teacher: Tensor, dim: int | None = None) -> None:
    """`dim`: where student and teacher may share their first classes only."""
    if student.shape == teacher.shape:
        return
    remedy = ""
    if isinstance(dim, int) and -student.dim() <= dim < student.dim() and _differ_in_classes(student, teacher, dim):
        remedy = "; use shared_classes=n where the first n classes of both are the same"
    raise ValueError(
        f"{function}: student {list(student.shape)} and teacher {list(teacher.shape)} must have equal shapes{remedy}"
    )


def _differ_in_classes(student: Tensor, teacher: Tensor, dim: int) -> bool:
    """Whether the shapes differ in their numbers of classes alone, or not at all."""
    ours, theirs = list(student.shape), list(teacher.shape)
    return len(ours) == len(theirs) and ours[:dim] + ours[dim:][1:] == theirs[:dim] + theirs[dim:][1:]


def several_classes(function: str, logits: Tensor, dim: int) -> None:
    if logits.shape[dim] < 2:
        raise ValueError(
            f"{function}: at least 2 classes are needed, got logits {list(logits.shape)} with dim={dim}"
        )


def class_span(function: str, start: Any, stop: Any, logits: Tensor, dim: int) -> tuple[int, int]:
    """Some of the classes, one at least."""
    start, stop = integer(function, "start", start), integer(function, "stop", stop)
    classes = logits.shape[dim]
    if not 0 <= start < stop <= classes:
        raise ValueError(
            f"{function}: start and stop must be a range of the classes, 0 <= start < stop <= {classes} for logits "
            f"{list(logits.shape)} with dim={dim}, got {start} and {stop}"
        )
    return start, stop


def joint_labels(function: str, logits: Any, target: Any, transforms: int) -> Tensor:
    """Logits of several transforms of each image among as many times its classes; returns the labels of the images as int64."""
    float_tensor(function, "joint_logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"{function}: joint_logits must be [rows, classes], got {list(logits.shape)}")
    class_dimension(function, logits, 1)
    if logits.shape[1] % transforms:
        raise ValueError(
            f"{function}: joint_logits must have a multiple of transforms={transforms} classes, got {list(logits.shape)}"
        )
    target = integer_tensor(function, "target", target, "integer class labels", "use target.argmax(dim) of probabilities")
    if target.dim() == 2 and target.shape[1] == 1:
        target = target.squeeze(1)
    if target.dim() != 1:
        raise ValueError(f"{function}: target must have one value per image, [B], got {list(target.shape)}")
    if logits.shape[0] != transforms * target.shape[0]:
        raise ValueError(
            f"{function}: joint_logits must have transforms * len(target) = {transforms * target.shape[0]} rows, "
            f"got {list(logits.shape)}"
        )
    same_device(function, "target", target, logits, "joint_logits")
    return target


def threshold(function: str, value: Any, logits: Tensor, dim: int) -> float | Tensor:
    """A probability for all classes, or a tensor of one for each."""
    if not isinstance(value, Tensor):
        return unit_interval(function, "threshold", value)
    float_tensor(function, "threshold", value)
    if value.shape != logits.shape[dim : dim + 1]:
        raise ValueError(
            f"{function}: threshold must be a number or have one value per class, [{logits.shape[dim]}] for logits "
            f"{list(logits.shape)} with dim={dim}, got {list(value.shape)}"
        )
    same_device(function, "threshold", value, logits, "logits")
    value = value.detach()
    if readable(value) and not bool(((value >= 0) & (value <= 1)).all()):
        bad = value[~((value >= 0) & (value <= 1))][0].item()
        raise ValueError(f"{function}: threshold must be in [0, 1] for every class, got {bad}")
    return value


def temperature(function: str, value: Any, logits: Tensor, dim: int) -> float | Tensor:
    """A number, or a constant tensor: of one number for all rows, or of one per row. Comes back in row shape."""
    if type(value) in NUMBERS and 0 < value < inf:
        return value
    if not isinstance(value, Tensor):
        return positive(function, "temperature", value)
    float_tensor(function, "temperature", value)
    if value.dim() == 0 or value.shape == (1,):
        one = one_temperature(function, value, logits, "student")
        return one.expand(logits.shape[:dim] + logits.shape[dim + 1 :]) if isinstance(one, Tensor) else one
    constant(function, "temperature", value)
    row_tensor(function, "temperature", value, logits, dim)
    if readable(value) and not bool(((value > 0) & (value < inf)).all()):
        bad = value[~((value > 0) & (value < inf))][0].item()
        raise ValueError(f"{function}: temperature must be finite and > 0 in every row, got {bad}")
    return value


def mixture_weight(function: str, divergence: str, beta: Any) -> float:
    """Weight of the teacher in the mixture of "jsd", which is 0 everywhere at both ends."""
    if type(beta) in NUMBERS and 0 < beta < 1:
        return beta
    beta = unit_interval(function, "beta", beta)
    if divergence == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"{function}: beta must be in (0, 1) for divergence='jsd', which is 0 everywhere at its ends, got {beta}; "
            "use divergence='forward' or divergence='reverse'"
        )
    return beta


def skew(function: str, divergence: str, value: Any) -> float:
    """Weight of the first distribution in the mixture that replaces the second, for two of the divergences."""
    if type(value) is float and value == 0:
        return value
    value = number(function, "skew", value)
    if not 0 <= value < 1:
        raise ValueError(f"{function}: skew must be in [0, 1), got {value}")
    if value and divergence not in ("forward", "reverse"):
        raise ValueError(
            f"{function}: skew must be 0 for divergence={divergence!r}, got {value}; "
            "use divergence='forward' or divergence='reverse'"
        )
    return value


def standardized(function: str, teacher_kind: str, value: Any) -> bool:
    """A flag that only logits may set."""
    value = flag(function, "standardize", value)
    if value and teacher_kind != "logits":
        raise ValueError(
            f"{function}: standardize needs the teacher's logits, got teacher_kind={teacher_kind!r}; pass logits with "
            "teacher_kind='logits'"
        )
    return value


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


def labels(
    function: str, target: Any, logits: Tensor, dim: int, remedy_of_floats: str = OF_SOFT_LABELS
) -> Tensor:
    """One class per row, as int64 in row shape; the class dimension may be there, of size 1."""
    shape = logits.shape
    if (
        type(target) is Tensor
        and target.dtype is torch.int64
        and target.layout is STRIDED
        and not target.is_nested
        and target.device == logits.device
        and dim + 1 == len(shape)
        and (*target.shape, shape[dim]) == shape
    ):
        return target
    target = integer_tensor(function, "target", target, "integer class labels", remedy_of_floats)
    if target.dim() == logits.dim() and target.shape[dim] == 1:
        target = target.squeeze(dim)
    row_tensor(function, "target", target, logits, dim)
    return target


def labels_or_probabilities(function: str, target: Any, logits: Tensor, dim: int) -> Tensor:
    """One class per row, as `labels`; or floats in the shape of the logits, a distribution over the classes for each row."""
    if not (isinstance(target, Tensor) and target.is_floating_point()):
        return labels(function, target, logits, dim)
    float_tensor(function, "target", target)
    if target.shape != logits.shape:
        raise ValueError(
            f"{function}: target of floats holds probabilities of classes and must have the shape of student, "
            f"{list(logits.shape)}, got {list(target.shape)}; convert class labels with target.long()"
        )
    same_device(function, "target", target, logits)
    return target


def label_range(function: str, target: Tensor, classes: int, ignore_index: int, first: int = 0) -> None:
    """For the reference, and for what the compiled CPU op, which checks its labels itself, has refused."""
    if not readable(target):
        return
    bad = (target != ignore_index) & ((target < first) | (target >= first + classes))
    if bool(bad.any()):
        raise ValueError(
            f"{function}: target contains {target[bad][0].item()}, valid labels are {first}..{first + classes - 1} "
            f"(or ignore_index={ignore_index})"
        ) from None


def normalization(function: str, normalize: Any, normalise: Any) -> bool:
    """`normalise` is what `normalize` was called before."""
    if normalise is not None:
        if not torch.compiler.is_compiling():  # a graph being traced has no place for a warning
            warnings.warn(f"{function}: normalise is now called normalize", FutureWarning, stacklevel=3)
        normalize = normalise
    return flag(function, "normalize", normalize)


def class_range(function: str, target: Tensor, classes: int) -> None:
    """Labels that no function may ignore."""
    integer_range(function, "target", target, classes, "labels")


def permutation(function: str, value: Any, logits: Tensor) -> Tensor:
    """A class for each class, as int64; whether each occurs once: see `permutes_classes`."""
    value = integer_tensor(function, "permutation", value, "integer classes")
    if value.shape != logits.shape:
        raise ValueError(
            f"{function}: permutation must have the shape of the logits, {list(logits.shape)}, "
            f"got {list(value.shape)}"
        )
    same_device(function, "permutation", value, logits)
    return value


def permutes_classes(function: str, permutation: Tensor, dim: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its permutations itself, refused."""
    if not readable(permutation):
        return
    rows = permutation.movedim(dim, -1)
    classes = rows.shape[-1]
    bad = (rows.sort().values != torch.arange(classes, device=rows.device)).any(-1)
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
