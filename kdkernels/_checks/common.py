"""Rules that every family has: tensors, numbers, names, devices."""

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
            f"{function}: {name} must be float32, float16, bfloat16 or float64, got {dtype_name(tensor)}{remedy}"
        )


def int64_tensor(function: str, name: str, value: Any, meaning: str = "") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype is not torch.int64:
        remedy = f"; convert it with {name}.long()" if value.dtype in _INTEGERS else ""
        raise TypeError(f"{function}: {name} must be int64{meaning}, got {dtype_name(value)}{remedy}")


def int64_range(function: str, name: str, value: Tensor, count: int, what: str) -> None:
    """Numbers of 0..count-1, where they can be looked at."""
    if not readable(value):
        return
    bad = (value < 0) | (value >= count)
    if bool(bad.any()):
        raise ValueError(
            f"{function}: {name} contains {value[bad][0].item()}, valid {what} are 0..{count - 1}"
        ) from None


def bool_mask(function: str, mask: Any) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{function}: mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{function}: mask must be bool, got {dtype_name(mask)}; convert it with mask.bool()")


def same_device(function: str, name: str, tensor: Tensor, other: Tensor, other_name: str = "student") -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{function}: {other_name} and {name} must be on one device, got {other.device} and {tensor.device}"
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


def at_least_one(function: str, name: str, value: Any) -> None:
    if type(value) is not int:
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{function}: {name} must be >= 1, got {value}")


def process_group(function: str, value: Any) -> None:
    if not isinstance(value, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{function}: group must be a torch.distributed.ProcessGroup, got {type(value).__name__}"
        )


def readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: a plain tensor in host memory, not one being traced or transformed."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.is_cpu
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None  # torch.func.linearize
    )


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
