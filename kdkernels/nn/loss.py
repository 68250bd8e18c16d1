"""What the modules have in common."""

from __future__ import annotations

from typing import Any

import numpy
from torch import nn


class Scheduled(nn.Module):
    """A module whose numbers a schedule may change between steps, without a graph of torch.compile for each value."""

    _floats = frozenset()  # names of the attributes that hold them

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # The modules of this package postpone the evaluation of annotations: they are strings.
        arguments = cls.__init__.__annotations__
        cls._floats = cls._floats.union(name for name, kind in arguments.items() if "float" in str(kind))

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.compile takes NumPy's scalars for arrays, and an int of a module for one that never changes.
        if isinstance(value, numpy.generic):
            value = value.item()
        super().__setattr__(name, float(value) if type(value) is int and name in self._floats else value)


class Loss(Scheduled):
    """Options of the function as attributes."""

    def __init__(self, **options: Any):
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())
