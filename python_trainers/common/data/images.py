"""Labelled images, in memory or in files, and the data sets made of them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from python_trainers.common.data.augmentation import Augmentation
from python_trainers.common.data.reading import InMemory, Reader, Stored


class Standard(NamedTuple):
    """Per-channel mean and standard deviation, in units of the stored pixels."""

    mean: Tensor  # [channels, 1, 1] float32
    std: Tensor  # the same

    @classmethod
    def published(cls, mean: Sequence[float], std: Sequence[float]) -> "Standard":
        """From figures for pixels in [0, 1], for bytes."""
        return cls(*(255 * torch.tensor(values).view(-1, 1, 1) for values in (mean, std)))

    @classmethod
    def of(cls, pixels: Tensor) -> "Standard":
        """Of ``pixels`` [N, channels, height, width] uint8."""
        return cls.counted(value_counts(pixels))

    @classmethod
    def counted(cls, counts: Tensor) -> "Standard":
        """Exact, from how often each channel has each value: ``counts`` [channels, 256]."""
        values = torch.arange(256, dtype=torch.float64)
        share = counts.double() / counts.sum(1, keepdim=True)
        mean = share @ values
        std = ((values - mean[:, None]).square() * share).sum(1).sqrt()
        # A channel of one value throughout is only centred.
        return cls(*(part.float().view(-1, 1, 1) for part in (mean, std.masked_fill(std == 0, 1))))


def value_counts(pixels: Tensor) -> Tensor:
    """How often each channel of ``pixels`` [N, channels, height, width] uint8 has each value: [channels, 256]."""
    return torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)])


def standardised(pixels: Tensor, standard: Standard | None) -> Tensor:
    """``pixels`` [N, channels, height, width] to mean 0 and deviation 1 per channel; None: they are."""
    return pixels if standard is None else (pixels - standard.mean) / standard.std


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    pixels: Tensor | Stored  # [N, channels, height, width]: uint8, or float32 standardised already
    labels: Tensor  # [N] int64
    standard: Standard | None = None  # what standardises the pixels; None: they are
    clean_labels: Tensor | None = None  # [N] int64, before labels were corrupted; None: none was
    workers: int | None = None  # processes that read what is not in memory; 0: this one, None: by the CPUs, up to 8

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Images":
        """The images at ``index`` [M] int64."""
        clean = None if self.clean_labels is None else self.clean_labels[index]
        pixels = self.pixels.subset(index) if isinstance(self.pixels, Stored) else self.pixels[index]
        return replace(self, pixels=pixels, labels=self.labels[index], clean_labels=clean)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device) -> "Images":
        """The same images on ``device``; of stored ones, only what is read goes there."""
        return replace(
            self,
            pixels=self.pixels if isinstance(self.pixels, Stored) else self.pixels.to(device),
            labels=self.labels.to(device),
            standard=self.standard and Standard(*(part.to(device) for part in self.standard)),
            clean_labels=None if self.clean_labels is None else self.clean_labels.to(device),
        )

    def standardise(self, pixels: Tensor) -> Tensor:
        """``pixels`` of these images, as stored, to mean 0 and deviation 1 per channel; float32."""
        return standardised(pixels, self.standard)

    def reader(self, augmentation: Augmentation) -> Reader | None:
        """What reads these images one by one for training; None: they are a tensor to be indexed."""
        if augmentation.transform is not None and isinstance(self.pixels, Tensor):
            return Reader(InMemory(self.pixels), augmentation.transform, self.workers)
        return Reader(self.pixels, augmentation.transform, self.workers) if isinstance(self.pixels, Stored) else None

    def batches(self, batch_size: int, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the images in order, as they are: standardised pixels and labels.

        Images that are read draw random numbers, if any, by their place alone: every pass is the same. The
        workers that read them live as long as this object.
        """
        images, device = self.to(accelerator.device), accelerator.device
        mine = torch.arange(len(self), device=device)[accelerator.process_index :: accelerator.num_processes]
        indices = mine.split(batch_size)
        if isinstance(self.pixels, Stored):
            stored = self._in_order.read(indices, seeds=indices)
        else:
            stored = (images.pixels[index] for index in indices)
        for index, pixels in zip(indices, stored, strict=True):
            yield images.standardise(pixels.to(device, non_blocking=True)), images.labels[index]

    @cached_property
    def _in_order(self) -> Reader:
        return Reader(self.pixels, workers=self.workers)


@dataclass(frozen=True)
class Dataset:
    """A classification task with its fixed split."""

    name: str  # the same name, the same data: what configurations record
    train: Images
    test: Images
    classes: int
    augmentation: Augmentation  # the usual one for training on such images
    background: float = 0.0  # stored value of an empty pixel; what a shift moves in
    cpu_threads: int | None = None  # threads worth using without a GPU; None: torch's choice
    validation: Images | None = None  # held out of the training images; None: none are

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.test.image_shape

    def read_by(self, workers: int | None) -> "Dataset":
        """The same, whose images that are not in memory are read by so many processes."""
        splits = {name: getattr(self, name) for name in ("train", "test", "validation")}
        mine = {name: images for name, images in splits.items() if isinstance(images, Images)}
        return replace(self, **{name: replace(images, workers=workers) for name, images in mine.items()})

    def restricted(self, classes: Sequence[int]) -> "Dataset":
        """The images of ``classes`` alone, relabelled 0, 1, ... in the order given."""
        new_label = torch.full((self.classes,), -1)
        new_label[torch.tensor(classes)] = torch.arange(len(classes))
        return replace(
            self,
            name=f"{self.name}, classes {' '.join(map(str, classes))}",
            train=_relabelled(self.train, new_label),
            test=_relabelled(self.test, new_label),
            validation=self.validation and _relabelled(self.validation, new_label),
            classes=len(classes),
        )


def _relabelled(images: Images, new_label: Tensor) -> Images:
    """The images whose label has a ``new_label`` [classes] >= 0, under it; other clean labels become -1."""
    kept = images.subset((new_label[images.labels] >= 0).nonzero().squeeze(1))
    clean = None if kept.clean_labels is None else new_label[kept.clean_labels]
    return replace(kept, labels=new_label[kept.labels], clean_labels=clean)


def content_name(*splits: Images) -> str:
    """Short name of what ``splits`` hold; of images that are not in memory, their identity counts."""
    digest = hashlib.sha256()
    for images in splits:
        pixels = images.pixels
        digest.update(repr(tuple(pixels.shape)).encode())
        digest.update(images.labels.numpy())
        digest.update(pixels.identity() if isinstance(pixels, Stored) else pixels.numpy())
    return digest.hexdigest()[:16]
