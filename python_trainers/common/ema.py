"""A moving average of a network's weights, tested and kept beside them."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from python_trainers.common.hooks import Hook
from python_trainers.common.task import Task


class MovingAverage(Hook):
    """weights = decay * weights + (1 - decay) * the network's, after each step but the first, which gives its own.

    Buffers are the network's.
    """

    name = "ema"

    def __init__(self, network: nn.Module, decay: float, task: Task, accelerator: Accelerator) -> None:
        self._network, self._task, self._accelerator = network, task, accelerator
        average = get_ema_multi_avg_fn(decay)
        self._average = AveragedModel(network, device=accelerator.device, multi_avg_fn=average)
        self._average.eval().requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._average.module

    @torch.no_grad()
    def after_step(self) -> None:
        self._average.update_parameters(self._network)

    def end_epoch(self, epoch: int, figures: dict[str, float]) -> dict[str, float]:
        for buffer, current in zip(self.network.buffers(), self._network.buffers(), strict=True):
            buffer.copy_(current)  # of several processes all have the first one's now
        averaged = self._task.measure(self.network, self._accelerator)
        return {f"ema_{name}": value for name, value in averaged.items()}

    def state_dict(self) -> dict:
        return self._average.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._average.load_state_dict(state)
