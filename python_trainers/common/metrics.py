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

    def local(self, name: str) -> float:
        """Mean of one figure over this process's batches so far; waits for the device."""
        return self._sums[name].item() / self._count

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all batches and processes."""
        return {
            name: accelerator.reduce(total, reduction="mean").item() / self._count
            for name, total in self._sums.items()
        }


@torch.no_grad()  # not inference_mode: what a network caches in a test must serve training, too
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

    def figures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"correct": logits.argmax(-1) == labels}

    return logit_means(model, images, figures, accelerator, batch_size)["correct"].item()


def top_accuracies(
    model: nn.Module, images: Images, accelerator: Accelerator, batch_size: int = 1024
) -> dict[str, float]:
    """``top1`` and ``top5``: the shares of ``images`` whose label is among so many largest logits, in [0, 1]."""

    def figures(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        order = logits.topk(min(5, logits.shape[-1])).indices
        return {"top1": logits.argmax(-1) == labels, "top5": (order == labels.unsqueeze(1)).any(1)}

    means = logit_means(model, images, figures, accelerator, batch_size)
    return {name: mean.item() for name, mean in means.items()}


def logit_means(
    model: nn.Module,
    images: Images,
    figures: Callable[[Tensor, Tensor], dict[str, Tensor]],  # of logits and labels: name -> [N]
    accelerator: Accelerator,
    batch_size: int,
) -> dict[str, Tensor]:
    """Mean over ``images`` of figures of the model's logits, in evaluation mode."""
    model.eval()

    def of_pixels(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with accelerator.autocast():
            logits = model(pixels)
        return figures(logits, labels)

    return means_over(images, of_pixels, accelerator, batch_size)
