"""A network and what learns beside it, trained as one module."""

from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.hooks import Hook
from python_trainers.common.task import Task


class Learner(Hook, nn.Module):
    """A network with a module that learns beside it and is thrown away after training.

    All that a loss differentiates passes through :meth:`forward`, as data-parallel training needs; its
    arguments and results are the method's. The network is tested and saved without the learner.
    """

    def __init__(self, network: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.beside = beside

    def forward(self, *inputs: Tensor) -> Tensor | tuple:
        """What the objective needs of a batch."""
        raise NotImplementedError

    def measure(self, task: Task, accelerator: Accelerator) -> dict[str, float]:
        """Figures after each epoch."""
        return task.measure(self.network, accelerator)
