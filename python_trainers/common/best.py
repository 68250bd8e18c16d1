"""The weights of the epoch that was best on held-out images."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from python_trainers.common.hooks import Hook


class KeepBest(Hook):
    """Remembers the weights of the best epoch so far, and puts them into the ``modules`` after the last."""

    name = "best"

    def __init__(self, modules: Mapping[str, nn.Module], figure: str, epochs: int) -> None:
        self._modules, self._figure, self._epochs = nn.ModuleDict(modules), figure, epochs
        self._value, self._epoch, self._weights = float("-inf"), 0, None

    def end_epoch(self, epoch: int, figures: dict[str, float]) -> dict[str, float]:
        if figures[self._figure] > self._value:  # of equally good ones the first
            self._value, self._epoch = figures[self._figure], epoch
            self._weights = copy.deepcopy(self._modules.state_dict())
        if epoch == self._epochs:
            self._modules.load_state_dict(self._weights)
        return {"kept_epoch": self._epoch}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self._value, "epoch": self._epoch, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._value, self._epoch, self._weights = state["value"], state["epoch"], state["weights"]
