"""Labelled images, in memory or in files, and the data sets made of them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from python_trainers.common.data.augmentation import Augmentation
from python_trainers.common.data.image_files import ImageFiles


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
        """Of ``pixels`` [N, channels, height, width] uint8: exact, from counts of each value."""
        values = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)])
        share = counts.double() / counts.sum(1, keepdim=True)
        mean = share @ values
        std = ((values - mean[:, None]).square() * share).sum(1).sqrt()
        # A channel of one value throughout is only centred.
        return cls(*(part.float().view(-1, 1, 1) for part in (mean, std.masked_fill(std == 0, 1))))


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    pixels: Tensor | ImageFiles  # [N, channels, height, width]: uint8, or float32 standardised already
    labels: Tensor  # [N] int64
    standard: Standard | None = None  # what standardises the pixels; None: they are
    clean_labels: Tensor | None = None  # [N] int64, before labels were corrupted; None: none was

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Images":
        """The images at ``index`` [M] int64."""
        clean = None if self.clean_labels is None else self.clean_labels[index]
        return replace(self, pixels=self.pixels[index], labels=self.labels[index], clean_labels=clean)

    def to(self, device: torch.device) -> "Images":
        """The same images on ``device``; files stay files."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            standard=self.standard and Standard(*(part.to(device) for part in self.standard)),
            clean_labels=None if self.clean_labels is None else self.clean_labels.to(device),
        )

    def standardise(self, pixels: Tensor) -> Tensor:
        """``pixels`` of these images, as stored, to mean 0 and deviation 1 per channel; float32."""
        return pixels if self.standard is None else (pixels - self.standard.mean) / self.standard.std

    def read(
        self, indices: Sequence[Tensor], crops: Sequence[Tensor] | None = None, workers: int | None = None
    ) -> Iterator[Tensor]:
        """Stored pixels of the images at each of ``indices``; the rest as in :meth:`ImageFiles.read`."""
        if isinstance(self.pixels, ImageFiles):
            return self.pixels.read(indices, crops, workers)
        return (self.pixels[index] for index in indices)

    def batches(
        self, batch_size: int, accelerator: Accelerator, workers: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the images in order, as they are: standardised pixels and labels."""
        images, device = self.to(accelerator.device), accelerator.device
        mine = torch.arange(len(self), device=device)[accelerator.process_index :: accelerator.num_processes]
        indices = mine.split(batch_size)
        for index, pixels in zip(indices, images.read(indices, workers=workers), strict=True):
            yield images.standardise(pixels.to(device, non_blocking=True)), images.labels[index]


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return tuple(self.test.pixels.shape[1:])

    def restricted(self, classes: Sequence[int]) -> "Dataset":
        """The images of ``classes`` alone, relabelled 0, 1, ... in the order given."""
        new_label = torch.full((self.classes,), -1)
        new_label[torch.tensor(classes)] = torch.arange(len(classes))
        return replace(
            self,
            name=f"{self.name}, classes {' '.join(map(str, classes))}",
            train=_relabelled(self.train, new_label),
            test=_relabelled(self.test, new_label),
            classes=len(classes),
        )


def _relabelled(images: Images, new_label: Tensor) -> Images:
    """The images whose label has a ``new_label`` [classes] >= 0, under it; other clean labels become -1."""
    kept = images.subset((new_label[images.labels] >= 0).nonzero().squeeze(1))
    clean = None if kept.clean_labels is None else new_label[kept.clean_labels]
    return replace(kept, labels=new_label[kept.labels], clean_labels=clean)


def fingerprint(*splits: Images) -> str:
    """Short name of what ``splits`` hold; of images that are files, their names count."""
    digest = hashlib.sha256()
    for images in splits:
        pixels = images.pixels
        digest.update(repr(tuple(pixels.shape)).encode())
        digest.update(images.labels.numpy())
        digest.update("\n".join(pixels.paths).encode() if isinstance(pixels, ImageFiles) else pixels.numpy())
    return digest.hexdigest()[:16]
