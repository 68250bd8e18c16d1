"""What the modules have in common."""

from __future__ import annotations

from typing import Any

import numpy
from torch import nn


class Loss(nn.Module):
    """Options of the function as attributes, so that a schedule can change them between steps."""

    def __init__(self, **options: Any):
        super().__init__()
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        # A schedule made with NumPy holds its scalars, which torch.compile takes for arrays.
        super().__setattr__(name, value.item() if isinstance(value, numpy.generic) else value)

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())
