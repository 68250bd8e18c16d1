"""One helper per rule on the arguments of the public functions. They run once, before any kernel.

ValueError for values, shapes and devices, TypeError for dtypes and types; a message tells the name, the rule,
what was got, and the remedy where that is not plain. Good arguments cost a few comparisons. Values inside a
tensor are looked at only where no device has to be waited for: see `_readable`.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
_INTEGERS = frozenset((torch.int8, torch.int16, torch.int32, torch.uint8))
_NUMBERS = frozenset((float, int))


def float_tensor(function: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        remedy = (
            "" if tensor.is_floating_point() or tensor.is_complex() else f"; convert it with {name}.float()"
        )
        raise TypeError(
            f"{function}: {name} must be float32, float16, bfloat16 or float64, got {_dtype(tensor)}{remedy}"
        )


def same_shape(function: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: student {list(student.shape)} and teacher {list(teacher.shape)} "
            "must have equal shapes"
        )


def same_device(function: str, name: str, tensor: Tensor, student: Tensor) -> None:
    if tensor.device != student.device:
        raise ValueError(
            f"{function}: student and {name} must be on one device, got {student.device} and {tensor.device}"
        )


def class_dimension(function: str, logits: Tensor, dim: int) -> int:
    """`dim` counted from the front."""
    rank = logits.dim()
    if rank == 0:
        raise ValueError(f"{function}: student must have at least 1 dimension, the classes, got a scalar")
    if type(dim) is not int:
        raise TypeError(f"{function}: dim must be an int, got {type(dim).__name__}")
    if not -rank <= dim < rank:
        raise ValueError(
            f"{function}: dim must be in {-rank}..{rank - 1} for logits {list(logits.shape)}, got {dim}"
        )
    if logits.shape[dim] == 0:
        raise ValueError(
            f"{function}: at least 1 class is needed, got logits {list(logits.shape)} with dim={dim}"
        )
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


def temperature(function: str, value: Any, logits: Tensor, dim: int) -> None:
    """A number, or one per row."""
    if isinstance(value, Tensor):
        float_tensor(function, "temperature", value)
        row_tensor(function, "temperature", value, logits, dim)
        if _readable(value) and not bool(((value > 0) & (value < inf)).all()):
            bad = value[~((value > 0) & (value < inf))][0].item()
            raise ValueError(f"{function}: temperature must be finite and > 0 in every row, got {bad}")
        return
    positive(function, "temperature", value)


def several_classes(function: str, logits: Tensor, dim: int) -> None:
    if logits.shape[dim] < 2:
        raise ValueError(
            f"{function}: at least 2 classes are needed, got logits {list(logits.shape)} with dim={dim}"
        )


def one_of(function: str, name: str, value: Any, names: dict[Any, int]) -> int:
    """The integer behind a name."""
    try:
        return names[value]
    except (KeyError, TypeError):
        allowed = ", ".join(repr(known) for known in names)
        raise ValueError(f"{function}: {name} must be one of {allowed}, got {value!r}") from None


def unit_interval(function: str, name: str, value: Any) -> None:
    number(function, name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: {name} must be in [0, 1], got {value}")


def not_negative(function: str, name: str, value: Any) -> None:
    number(function, name, value)
    if not 0 <= value < inf:
        raise ValueError(f"{function}: {name} must be finite and >= 0, got {value}")


def positive(function: str, name: str, value: Any) -> None:
    number(function, name, value)
    if not 0 < value < inf:
        raise ValueError(f"{function}: {name} must be finite and > 0, got {value}")


def number(function: str, name: str, value: Any) -> None:
    # Subclasses and NumPy scalars are numbers too; the exact types come first because they are what is usual.
    if type(value) in _NUMBERS or (isinstance(value, (float, int)) and not isinstance(value, bool)):
        return
    remedy = f"; use {name}.item()" if isinstance(value, Tensor) else ""
    raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}{remedy}")


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
    if not isinstance(mask, Tensor):
        raise TypeError(f"{function}: mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{function}: mask must be bool, got {_dtype(mask)}; convert it with mask.bool()")
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
    if not _readable(value) or not _readable(target) or not value.numel():
        return
    lowest, highest = value.aminmax()
    if lowest.item() >= 0 and highest.item() <= 1:  # neither, where there is a NaN
        return
    bad = ~((value >= 0) & (value <= 1)) & (target != ignore_index)
    if bool(bad.any()):
        raise ValueError(f"{function}: confidence must be in [0, 1] in every row, got {value[bad][0].item()}")


def permutation(function: str, value: Any, logits: Tensor) -> None:
    """A class for each class, whether each occurs once: see `permutes_classes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: permutation must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype is not torch.int64:
        remedy = "; convert it with permutation.long()" if value.dtype in _INTEGERS else ""
        raise TypeError(f"{function}: permutation must be int64 classes, got {_dtype(value)}{remedy}")
    if value.shape != logits.shape:
        raise ValueError(
            f"{function}: permutation must have the shape of the logits, {list(logits.shape)}, "
            f"got {list(value.shape)}"
        )
    same_device(function, "permutation", value, logits)


def permutes_classes(function: str, permutation: Tensor, dim: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its permutations itself, refused."""
    if not _readable(permutation):
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


def process_group(function: str, value: Any) -> None:
    if not isinstance(value, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{function}: group must be a torch.distributed.ProcessGroup, got {type(value).__name__}"
        )


def labels(function: str, target: Any, logits: Tensor, dim: int, ignore_index: Any) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"{function}: target must be a torch.Tensor, got {type(target).__name__}")
    if target.dtype is not torch.int64:
        remedy = "; convert it with target.long()" if target.dtype in _INTEGERS else ""
        raise TypeError(f"{function}: target must be int64 class labels, got {_dtype(target)}{remedy}")
    row_tensor(function, "target", target, logits, dim)
    if type(ignore_index) is not int:
        raise TypeError(f"{function}: ignore_index must be an int, got {type(ignore_index).__name__}")


def label_range(function: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its labels itself, has refused."""
    if not _readable(target):
        return
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        raise ValueError(
            f"{function}: target contains {target[bad][0].item()}, valid labels are 0..{classes - 1} "
            f"(or ignore_index={ignore_index})"
        ) from None


def _readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: a plain tensor in host memory, not one being traced or transformed."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
