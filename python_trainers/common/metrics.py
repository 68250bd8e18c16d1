"""Figures of an epoch, summed on the device and read once."""

from collections.abc import Callable

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
def means_over(
    images: Images,
    figures: Callable[[Tensor, Tensor], dict[str, Tensor]],  # of pixels and labels: name -> [N, ...]
    accelerator: Accelerator,
    batch_size: int = 1024,
) -> dict[str, Tensor]:
    """Mean of each figure over ``images``, float64 [...]; each process looks at its part."""
    sums: dict[str, Tensor] = {}
    for pixels, labels in images.batches(batch_size, accelerator):
        for name, values in figures(pixels, labels).items():
            total = values.double().sum(0)
            sums[name] = sums[name] + total if name in sums else total
    return {name: accelerator.reduce(total, reduction="sum") / len(images) for name, total in sums.items()}


def accuracy(model: nn.Module, images: Images, accelerator: Accelerator, batch_size: int = 1024) -> float:
    """Share of ``images`` whose largest logit is the label, in [0, 1]."""
    model.eval()

    def figures(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"correct": model(pixels).argmax(-1) == labels}

    return means_over(images, figures, accelerator, batch_size)["correct"].item()
