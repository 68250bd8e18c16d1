"""Rules that every family has: tensors, numbers, names, devices."""

from __future__ import annotations

from math import inf, nan
from numbers import Integral, Real
from typing import Any

import numpy
import torch
from torch import Tensor

from .._backend import forward_mode, has_tangent, is_sharded

FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
_INTEGERS = frozenset(
    (torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
)
NUMBERS = frozenset((float, int))
STRIDED = torch.strided


def dense_tensor(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if is_sharded(value):
        raise NotImplementedError(
            f"{function}: {name} is a DTensor, which the losses of rows alone take, and where student is one too; use "
            f"{name}.full_tensor(), or {name}.to_local() and group= where there is one"
        )
    if value.layout is STRIDED and not value.is_nested:
        return
    if value.is_nested:
        jagged = value.layout is torch.jagged
        kind, remedy = "nested", "values()" if jagged else "to_padded_tensor(0.0) and a mask"
    else:
        kind, remedy = str(value.layout).removeprefix("torch."), "to_dense()"
    raise TypeError(f"{function}: {name} must be a dense tensor, got a {kind} one; use {name}.{remedy}")


def float_tensor(function: str, name: str, tensor: Any, remedy_of_bool: str = "") -> None:
    if type(tensor) is Tensor and tensor.dtype in FLOATS and tensor.layout is STRIDED and not tensor.is_nested:
        return
    dense_tensor(function, name, tensor)
    if tensor.dtype in FLOATS:
        return
    if tensor.is_quantized:
        remedy = f"; convert it with {name}.dequantize()"
    elif tensor.is_floating_point() or tensor.is_complex():
        remedy = ""
    elif tensor.dtype is torch.bool and remedy_of_bool:
        remedy = f"; {remedy_of_bool}"
    else:
        remedy = f"; convert it with {name}.float()"
    raise TypeError(
        f"{function}: {name} must be float32, float16, bfloat16 or float64, got {dtype_name(tensor)}{remedy}"
    )


def integer_tensor(
    function: str, name: str, tensor: Any, what: str = "integers", remedy_of_floats: str = ""
) -> Tensor:
    """As int64, which holds the values of the other integer dtypes: comparing them before or afterwards is the same."""
    dense_tensor(function, name, tensor)
    if tensor.dtype is torch.int64:
        return tensor
    if tensor.dtype in _INTEGERS:
        return tensor.long()
    remedy = f"; {remedy_of_floats}" if tensor.is_floating_point() and remedy_of_floats else ""
    raise TypeError(f"{function}: {name} must hold {what}, got {dtype_name(tensor)}{remedy}")


def integer_range(function: str, name: str, value: Tensor, count: int, what: str) -> None:
    """Numbers of 0..count-1, where they can be looked at."""
    if not readable(value):
        return
    bad = (value < 0) | (value >= count)
    if bool(bad.any()):
        raise ValueError(
            f"{function}: {name} contains {value[bad][0].item()}, valid {what} are 0..{count - 1}"
        ) from None


def bool_mask(function: str, mask: Any) -> None:
    dense_tensor(function, "mask", mask)
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


def unit_interval(function: str, name: str, value: Any) -> float:
    if type(value) in NUMBERS and 0 <= value <= 1:
        return value
    value = number(function, name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: {name} must be in [0, 1], got {value}")
    return value


def not_negative(function: str, name: str, value: Any) -> float:
    if type(value) in NUMBERS and 0 <= value < inf:
        return value
    value = number(function, name, value)
    if not 0 <= value < inf:
        raise ValueError(f"{function}: {name} must be finite and >= 0, got {value}")
    return value


def positive(function: str, name: str, value: Any) -> float:
    if type(value) in NUMBERS and 0 < value < inf:
        return value
    value = number(function, name, value)
    if not 0 < value < inf:
        raise ValueError(f"{function}: {name} must be finite and > 0, got {value}")
    return value


def number(function: str, name: str, value: Any) -> float:
    """As Python's, which an op takes: NumPy's scalars and subclasses are converted."""
    if type(value) in NUMBERS:
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    remedy = f"; use {name}.item()" if isinstance(value, (Tensor, numpy.ndarray)) else ""
    raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}{remedy}")


def integer(function: str, name: str, value: Any) -> int:
    if type(value) is not int:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
        value = int(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{function}: {name} must fit into int64, got {value}")
    return value


def at_least_one(function: str, name: str, value: Any) -> int:
    value = integer(function, name, value)
    if value < 1:
        raise ValueError(f"{function}: {name} must be >= 1, got {value}")
    return value


def flag(function: str, name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    if isinstance(value, numpy.bool_):
        return bool(value)
    raise TypeError(f"{function}: {name} must be a bool, got {type(value).__name__}")


def one_temperature(
    function: str, value: Any, tensor: Tensor, tensor_name: str, *, name: str = "temperature", learned: bool = False
) -> float | Tensor:
    """A number, or a tensor of one, [] or [1], which is read where nothing has to be waited for.

    A tensor that stays one has no dimensions and the device of the other; unless it is `learned`, it is a constant, and
    NaN where it is not positive."""
    if not isinstance(value, Tensor):
        return positive(function, name, value)
    float_tensor(function, name, value)
    if value.dim() > 1 or value.numel() != 1:
        raise ValueError(f"{function}: {name} must be a number or a tensor of shape [] or [1], got {list(value.shape)}")
    if not learned:
        constant(function, name, value)
    known = value.detach().reshape(())  # of a Parameter too
    if readable(known):
        one = positive(function, name, known.item())
        if not (learned and (value.requires_grad or forward_mode())):
            return one
    same_device(function, name, value, tensor, tensor_name)
    return value.reshape(()) if learned else torch.where(known > 0, known, nan)


def denominator(function: str, value: Any, reduction: str = "mean") -> float | Tensor:
    """What a mean divides by: a number, or a constant tensor of one, on any device, whose value is not looked at."""
    if reduction == "sum" or reduction == "none":
        raise ValueError(
            f"{function}: denominator is what a mean divides by, and reduction={reduction!r} is none; "
            "use reduction='batchmean' or leave denominator out"
        )
    if not isinstance(value, Tensor):
        return positive(function, "denominator", value)
    dense_tensor(function, "denominator", value)
    if value.dtype not in FLOATS and value.dtype is not torch.int64 and value.dtype not in _INTEGERS:
        raise TypeError(f"{function}: denominator must hold a float or an integer, got {dtype_name(value)}")
    if value.dim() > 1 or value.numel() != 1:
        raise ValueError(f"{function}: denominator must be a number or a tensor of shape [] or [1], got {list(value.shape)}")
    constant(function, "denominator", value)
    return value.detach().reshape(())


def constant(function: str, name: str, tensor: Tensor) -> None:
    """Not where no gradient is asked of anything: there the parameters of a network may come as they are."""
    requires_grad = tensor.requires_grad and torch.is_grad_enabled()
    if requires_grad or has_tangent(tensor):
        got = "that requires grad" if requires_grad else "with a forward-mode derivative"
        raise ValueError(f"{function}: {name} must be a constant, got a tensor {got}; use {name}.detach()")


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
