"""Items of somebody's map-style Dataset, read when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from python_trainers.common.data.generators import generators_kept, seed_generators
from python_trainers.common.data.images import value_counts
from python_trainers.common.data.pairs import single
from python_trainers.common.data.passes import shown
from python_trainers.common.data.reading import Stored
from python_trainers.common.data.workers import Workers
from python_trainers.common.errors import require

PER_REQUEST = 64  # items of a pass that a worker reads at once
FIRST = 8  # images that tell data sets apart


@dataclass(frozen=True)
class DatasetItems(Stored):
    """Images of a Dataset of (image, label), which may draw random numbers while they are read."""

    dataset: Dataset
    where: str  # "the training data"
    numbers: np.ndarray  # [N] int64: the items that these images are
    image_shape: tuple[int, int, int]
    dtype: torch.dtype

    draws = True

    @classmethod
    def of(cls, dataset: Dataset, where: str) -> "DatasetItems":
        """All items; the first image says which shape and dtype they have."""
        require(len(dataset) > 0, f"{where} must have an item, the {type(dataset).__name__} is empty")
        with generators_kept():
            seed_generators(0)
            image, _ = single(dataset[0], f"item 0 of {where}")
        return cls(dataset, where, np.arange(len(dataset)), tuple(image.shape), image.dtype)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.numbers), *self.image_shape

    def subset(self, index: Tensor) -> "DatasetItems":
        return replace(self, numbers=self.numbers[index.cpu().numpy()])

    def read(self, number: int, crop: Sequence[float] | None = None) -> Tensor:
        return self.pair(number)[0]

    def picture(self, number: int) -> Tensor:
        return self.read(number).clone()  # the augmentation may work in place

    def pair(self, number: int) -> tuple[Tensor, int]:
        """Image and label ``number``."""
        item = int(self.numbers[number])
        image, label = single(self.dataset[item], f"item {item} of {self.where}")
        require(
            image.shape == self.image_shape and image.dtype == self.dtype,
            f"images of {self.where} must be of one shape and type, got {image.dtype} {list(image.shape)} for "
            f"item {item}, {self.dtype} {list(self.image_shape)} for item 0; resize them in the Dataset",
        )
        return image, label

    def identity(self) -> bytes:
        """The first images."""
        with generators_kept():
            images = (self._seeded(number)[0] for number in range(min(FIRST, len(self.numbers))))
            return b"".join(image.numpy().tobytes() for image in images)

    def labels(self) -> Tensor | None:
        """[N] int64 as the Dataset lists them, if it does and its items agree."""
        listed = _listed_labels(self.dataset)
        if listed is None:
            return None
        with generators_kept():
            probes = {0, len(listed) // 2, len(listed) - 1}
            agree = all(self._seeded(number)[1] == int(listed[number]) for number in probes)
        return listed if agree else None

    def look_through(self, workers: int | None) -> tuple[Tensor, Tensor | None]:
        """Labels [N] int64 and, of uint8 images, how often each channel has each value: [channels, 256]."""
        total = len(self.numbers)
        requests = torch.arange(total).split(PER_REQUEST)
        results = Workers(_Look(self), workers).map(request.tolist() for request in requests)
        labels, counts = zip(*shown(results, "read", self.where, total, PER_REQUEST), strict=True)
        return torch.cat(labels), sum(counts) if self.dtype == torch.uint8 else None

    def _seeded(self, number: int) -> tuple[Tensor, int]:
        """Image and label ``number`` as every pass in order sees them."""
        seed_generators(number)
        return self.pair(number)


class _Look:
    """Reads some items, in a worker."""

    def __init__(self, items: DatasetItems) -> None:
        self._items = items

    def __call__(self, numbers: list[int]) -> tuple[Tensor, Tensor | None]:
        with generators_kept():
            images, labels = zip(*map(self._items._seeded, numbers), strict=True)
        counts = value_counts(torch.stack(images)) if self._items.dtype == torch.uint8 else None
        return torch.tensor(labels), counts


def _listed_labels(dataset: Any) -> Tensor | None:
    """Labels [N] int64 in the places where torchvision's Datasets list them."""
    if isinstance(dataset, Subset):
        listed = _listed_labels(dataset.dataset)
        return None if listed is None else listed[torch.as_tensor(dataset.indices)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        try:
            listed = torch.as_tensor(getattr(dataset, name, None))
        except (TypeError, ValueError, RuntimeError):
            continue
        whole = not listed.is_floating_point() and listed.dtype != torch.bool
        if whole and listed.shape == (len(dataset),):
            return listed.long().cpu()
    return None
