"""A network and what learns beside it, trained as one module."""

from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.data import Images
from python_trainers.common.metrics import accuracy
from python_trainers.common.models.network import Network


class Learner(nn.Module):
    """A network with a module that learns beside it and is thrown away after training.

    In training mode ``forward`` is :meth:`learn`, whose arguments and results are the method's: all that a
    loss differentiates passes through it, as data-parallel training needs. In evaluation mode it is the
    network: images [N, channels, height, width] in, logits [N, classes] out.
    """

    def __init__(self, network: Network, beside: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.beside = beside

    def forward(self, *inputs: Tensor) -> Tensor | tuple:
        return self.learn(*inputs) if self.training else self.network(*inputs)

    def learn(self, *inputs: Tensor) -> Tensor | tuple:
        """What the objective needs of a batch."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch; ``epoch`` counts from 1."""

    def measure(self, images: Images, accelerator: Accelerator) -> dict[str, float]:
        """Figures on test images after each epoch: ``test_accuracy``, that of the network, and others."""
        return {"test_accuracy": accuracy(self, images, accelerator)}
