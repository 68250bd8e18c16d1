"""Which implementation runs: the compiled library of the tensors' device, or the PyTorch reference.

    auto        the library where one serves the device, else the reference, with one warning that says why (default)
    reference   the reference everywhere
    cpu, cuda   the library of that device, or an error

Chosen by KDKERNELS_BACKEND at import and by `backend` afterwards. One choice for the whole process: backward runs on
threads of its own and has to see it too.

Where forward-mode derivatives are taken the reference runs whatever the choice: the ops have none, and what has none
counts as a constant there. So it does inside of the torch.func transforms of a compiled function, which take no op whose
derivatives are registered.
"""

import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _loader

_NAMES = ("auto", "reference", "cpu", "cuda")


def _checked(name: str, source: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{source} must be one of {', '.join(_NAMES)}, got {name!r}")
    return name


_choice = _checked(os.environ.get("KDKERNELS_BACKEND") or "auto", "KDKERNELS_BACKEND")
_warned: set[str] = set()  # device types


class backend:
    """Chooses the implementation inside a `with` block.

    >>> import kdkernels as kd
    >>> with kd.backend("reference"):
    ...     kd.build_info()["backend"]
    'reference'
    """

    def __init__(self, name: str):  # "auto", "reference", "cpu" or "cuda"
        self._name = _checked(name, "backend: name")
        self._before: list[str] = []  # one object may be entered again before it is left

    def __enter__(self):
        global _choice
        self._before.append(_choice)
        _choice = self._name

    def __exit__(self, *exception):
        global _choice
        _choice = self._before.pop()


def choice() -> str:
    return _choice


def forward_mode() -> bool:
    """Whether forward-mode derivatives may be taken here: by dual numbers, or by torch.func, which makes them."""
    return forward_ad._current_level >= 0


# torch.compile enters the levels inside of a graph as it traces them; what it reads there does not hold where it begins.
forward_mode._dynamo_marked_constant = True


def has_tangent(tensor: Tensor) -> bool:
    """Whether a forward-mode derivative is taken with respect to it."""
    return forward_mode() and forward_ad.unpack_dual(tensor).tangent is not None


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; asked without importing what defines them."""
    if type(tensor) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def use_library(function: str, tensor: Tensor, *, differentiable: bool = True) -> bool:
    """Whether a call with this tensor goes to the compiled library (True) or to the reference (False)."""
    compiling = torch.compiler.is_compiling()
    if differentiable and not compiling and torch._C._is_tracing():
        # A trace holds the gradient of the traced batch, which the op computes in its forward pass.
        raise NotImplementedError(
            f"{function}: torch.jit.trace and what is built on it would keep the gradient of the traced batch; "
            "use torch.compile or torch.export"
        )
    # Levels and transforms that begin inside of a graph. torch.compile takes no derivative and no map of an op there.
    if compiling and (forward_mode() or torch._C._are_functorch_transforms_active()):
        return False
    # A graph that has read this outside of all levels is compiled anew inside of one.
    if forward_ad._current_level >= 0:
        return False
    # What `tensor.device.type` is, which makes a string of it at every call.
    device_type = "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type
    if _choice == "auto":
        if _loader.serves(device_type):
            return True
        # A graph being traced has no place for a warning.
        if not compiling:
            _warn_once(device_type)
        return False
    if _choice == "reference":
        return False
    if device_type != _choice:
        raise RuntimeError(f"backend {_choice!r} is chosen but the tensors are on {device_type}; move them or choose 'auto'")
    if not _loader.serves(device_type):
        raise RuntimeError(f"backend {_choice!r} is chosen but {_loader.why_not(device_type)}")
    return True


def _warn_once(device_type: str) -> None:
    if device_type in _warned:
        return
    _warned.add(device_type)
    warnings.warn(
        f"kdkernels runs its PyTorch reference on {device_type}, slower and with more memory: {_loader.why_not(device_type)}",
        RuntimeWarning,
        stacklevel=4,  # the caller of the public function
    )
