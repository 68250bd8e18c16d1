"""Figures of an epoch, summed on the device and read once."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.data import Images


class Means:
    """Running means of scalar tensors; nothing is read from the device before :meth:`read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Add one batch's figures."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all batches and processes."""
        return {
            name: accelerator.reduce(total, reduction="mean").item() / self._count
            for name, total in self._sums.items()
        }


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, accelerator: Accelerator, batch_size: int = 1024) -> float:
    """Share of ``images`` whose largest logit is the label, in [0, 1]; each process looks at its part."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for pixels, labels in images.batches(batch_size, accelerator):
        correct += (model(pixels).argmax(-1) == labels).sum()
    return accelerator.reduce(correct, reduction="sum").item() / len(images)
