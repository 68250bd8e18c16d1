"""Images that come in batches, from somebody's DataLoader."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from python_trainers.common.data.generators import generators_kept, seed_generators
from python_trainers.common.data.images import Standard, standardised, value_counts
from python_trainers.common.data.pairs import many
from python_trainers.common.data.passes import shown
from python_trainers.common.errors import TrainerError, require


@dataclass(frozen=True)
class LoadedImages:
    """What stands for :class:`Images` where a DataLoader gives them: in batches, none with a number."""

    loader: DataLoader
    where: str  # "the training data"
    image_shape: tuple[int, int, int]
    dtype: torch.dtype
    class_counts: Tensor  # [classes] int64
    batch_sizes: tuple[int, int]  # of the smallest and the largest batch
    standard: Standard | None = None

    @classmethod
    def of(cls, loader: DataLoader, where: str) -> "tuple[LoadedImages, Tensor | None]":
        """The loader, gone through once, and of uint8 images how often each channel has each value."""
        try:
            steps = len(loader)
        except TypeError as error:
            raise TrainerError(f"the DataLoader of {where} must have a length, that of its Dataset") from error
        require(steps > 0, f"{where} must have a batch, the DataLoader is empty")
        shape = dtype = counts = None
        labels = []
        for number, batch in enumerate(shown(steadily(loader), "read", f"{where} (batches)", steps)):
            images, classes = many(batch, f"batch {number} of {where}")
            shape, dtype = shape or tuple(images.shape[1:]), dtype or images.dtype
            require(
                tuple(images.shape[1:]) == shape and images.dtype == dtype,
                f"images of {where} must be of one shape and type, got {images.dtype} {list(images.shape[1:])} in "
                f"batch {number}, {dtype} {list(shape)} in batch 0",
            )
            labels.append(classes)
            if dtype == torch.uint8:
                counts = value_counts(images) + (0 if counts is None else counts)
        batches, labels = [len(classes) for classes in labels], torch.cat(labels)
        require(int(labels.min()) >= 0, f"labels of {where} must be 0, 1, 2, ..., got {int(labels.min())}")
        sizes = min(batches), max(batches)
        return cls(loader, where, shape, dtype, labels.bincount(), sizes), counts

    def __len__(self) -> int:
        return int(self.class_counts.sum())

    @property
    def labels(self) -> NoReturn:
        """Refused, as is whatever needs to tell one image from another."""
        raise TrainerError(
            f"{self.where} are a DataLoader, which gives batches; this run must know each image by its number: "
            "give the Dataset itself, of (image, label)"
        )

    pixels = clean_labels = labels

    def subset(self, index: Tensor) -> NoReturn:
        """Refused likewise."""
        return self.labels

    def to(self, device: torch.device) -> "LoadedImages":
        """The same, standardised there."""
        return replace(self, standard=self.standard and Standard(*(part.to(device) for part in self.standard)))

    def standardise(self, pixels: Tensor) -> Tensor:
        """As :meth:`Images.standardise`."""
        return standardised(pixels, self.standard)

    def batches(self, batch_size: int, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`Images.batches`, in the loader's own batches, read by its own workers."""
        images, device = self.to(accelerator.device), accelerator.device
        for number, batch in enumerate(steadily(self.loader)):
            mine = [part[accelerator.process_index :: accelerator.num_processes] for part in many(batch, self.where)]
            pixels, labels = (part.to(device, non_blocking=True) for part in mine)
            if len(labels):
                yield images.standardise(pixels), labels


def require_numbers(images: Any, why: str) -> None:
    """Refuse images of a DataLoader; ``why``: what remembers something about each image, as the subject."""
    require(
        not isinstance(images, LoadedImages),
        f"{why} must know each image by its number, the training data are a DataLoader, which gives batches: give the "
        "Dataset itself, of (image, label)",
    )


def generators_of(loader: DataLoader) -> list[torch.Generator]:
    """Those that belong to ``loader``; what else it draws comes from torch's global one."""
    holders = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None), loader.batch_sampler)
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())


def steadily(loader: DataLoader) -> Iterator:
    """The batches of ``loader``, the same in each such pass; nobody's generator is moved."""
    own = generators_of(loader)
    states = [generator.get_state() for generator in own]
    try:
        for generator in own:
            generator.manual_seed(0)
        with generators_kept():
            seed_generators(0)
            batches = iter(loader)
        for number in range(len(loader)):
            with generators_kept():
                seed_generators(number)
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
