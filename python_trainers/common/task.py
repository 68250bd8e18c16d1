"""What a network is trained for: which figures are measured, and which one speaks for the run.

A method that is no classifier of images (boxes, masks, episodes, a stream of tasks) brings a task of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from python_trainers.common.data import Dataset, Images
from python_trainers.common.metrics import accuracy


class Task(Protocol):
    """Figures of a network, measured after each epoch."""

    headline: str  # name of the figure that tables and plots show
    selection: str  # name of the figure by which --keep best chooses, the larger the better

    def measure(self, network: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Name and value of each figure, the headline first, on what is not learned from."""


@dataclass(frozen=True)
class Classification:
    """One label per image; accuracies are shares in [0, 1]."""

    headline: ClassVar[str] = "test_accuracy"
    selection: ClassVar[str] = "validation_accuracy"

    splits: Mapping[str, Images]  # test, and validation if images are held out
    batch_size: int = 1024  # images tested at once

    @classmethod
    def of(cls, dataset: Dataset, batch_size: int, device: torch.device) -> "Classification":
        """Of the images of ``dataset`` that are not learned from, kept on ``device``."""
        splits = {"test": dataset.test, "validation": dataset.validation}
        return cls({name: images.to(device) for name, images in splits.items() if images}, batch_size)

    def measure(self, network: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """``test_accuracy`` and, of a split that is held out, ``validation_accuracy``."""
        return {
            f"{split}_accuracy": accuracy(network, images, accelerator, self.batch_size)
            for split, images in self.splits.items()
        }
