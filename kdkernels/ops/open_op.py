"""Ops that take open numbers: see _open_numbers.py.

Every op has a second overload here, `open`, with a scalar tensor in the place of each float, which it reads when it runs.
Inductor leaves such tensors in host memory, as it moves none into an op that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._open_numbers import is_open, scalar

_LIBRARY = torch.library.Library("kdkernels", "FRAGMENT")
_FLOATS = ("float", "List[float]")


class OpenOp:
    """Both overloads of an op of csrc/library.cpp as one. Called with the arguments of its schema."""

    def __init__(self, name: str):
        self.op = getattr(torch.ops.kdkernels, name).default
        schema = self.op._schema
        self.floats = [at for at, argument in enumerate(schema.arguments) if str(argument.type) in _FLOATS]
        arguments, returns = str(schema).removeprefix(f"kdkernels::{name}").rsplit(" -> ", 1)
        arguments = arguments.replace("float ", "Tensor ").replace("float[] ", "Tensor[] ")
        _LIBRARY.define(f"{name}.open{arguments} -> {returns}")
        # On any device, below autograd.
        _LIBRARY.impl(f"{name}.open", lambda *each: self.op(*self.read(each)), "CompositeExplicitAutograd")
        self.open = getattr(torch.ops.kdkernels, name).open

    def __call__(self, *arguments: Any) -> Any:
        if not any(_any_open(arguments[at]) for at in self.floats):
            return self.op(*arguments)
        return self.open(*[_each(scalar, value) if at in self.floats else value for at, value in enumerate(arguments)])

    def read(self, arguments: Sequence) -> list:
        """The arguments with a number in the place of each scalar."""
        return [_each(_number, value) if at in self.floats else value for at, value in enumerate(arguments)]

    def register(
        self,
        *,
        fake: Callable,
        vmap: Callable | None = None,
        backward: Callable | None = None,
        setup_context: Callable | None = None,
    ) -> None:
        """What torch.library is to know, the same of both overloads."""
        for name in (self.op.name(), self.open.name()):
            torch.library.register_fake(name)(fake)
            if vmap is not None:
                torch.library.register_vmap(name, vmap)
            if backward is not None:
                torch.library.register_autograd(name, backward, setup_context=setup_context)


def _any_open(value: Any) -> bool:
    return any(map(is_open, value)) if isinstance(value, list) else is_open(value)


def _each(function: Callable, value: Any) -> Any:
    """Of a number, or of a list of them."""
    return [function(one) for one in value] if isinstance(value, list) else function(value)


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value
