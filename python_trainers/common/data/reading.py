"""Images that are read when they are needed, and what reads them in batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from python_trainers.common.data.generators import generators_kept, seed_generators
from python_trainers.common.data.workers import Workers
from python_trainers.common.errors import require


class Stored(ABC):
    """Images of one shape that are read one by one: in files, or items of somebody's Dataset."""

    dtype: torch.dtype  # of what is read: uint8, or float32 standardised already
    draws: bool  # whether reading draws random numbers
    shape: tuple[int, int, int, int]  # N, channels, height, width

    @abstractmethod
    def subset(self, index: Tensor) -> "Stored":
        """The images at ``index`` [M] int64."""

    @abstractmethod
    def read(self, number: int, crop: Sequence[float] | None = None) -> Tensor:
        """Image ``number``, [channels, height, width]; ``crop``: see :func:`image_files.random_box`."""

    def picture(self, number: int) -> Tensor:
        """What a given augmentation changes: image ``number`` before it was cut to the common shape."""
        return self.read(number)

    @abstractmethod
    def identity(self) -> bytes:
        """Tells these images from others, without reading all of them."""


class InMemory(Stored):
    """A tensor [N, channels, height, width] whose images are changed one by one."""

    draws = False

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels.cpu()
        self.dtype, self.shape = pixels.dtype, tuple(pixels.shape)

    def subset(self, index: Tensor) -> "InMemory":
        return InMemory(self._pixels[index])

    def read(self, number: int, crop: Sequence[float] | None = None) -> Tensor:
        return self._pixels[number].clone()  # the augmentation may work in place

    def identity(self) -> bytes:
        return self._pixels.numpy().tobytes()


class Request(NamedTuple):
    """One batch to read."""

    numbers: list[int]
    crops: list[list[float]] | None = None
    seeds: list[int] | None = None  # of the generators, before each image; None: nothing is drawn


class Reader:
    """Batches of stored images, each changed by ``transform`` if there is one.

    What is drawn while an image is read depends on its seed alone: neither the number of workers nor what was
    read before changes an image.
    """

    def __init__(
        self,
        stored: Stored,
        transform: Callable[[Tensor], Tensor] | None = None,  # keeps the dtype; gives the common shape
        workers: int | None = None,  # 0: this process reads; None: by the CPUs
    ) -> None:
        self.draws = stored.draws or transform is not None
        self._workers = Workers(_BatchOf(stored, transform), workers)

    def read(
        self,
        indices: Sequence[Tensor],  # each [M] int64: the images of a batch
        crops: Sequence[Tensor] | None = None,  # for each of ``indices`` [M, 4], as for random_box
        seeds: Sequence[Tensor] | None = None,  # for each of ``indices`` [M] int64
    ) -> Iterator[Tensor]:
        """[M, channels, height, width] for each of ``indices``, on the CPU."""
        nothing = [None] * len(indices)
        requests = zip(indices, crops or nothing, seeds if self.draws else nothing, strict=True)
        return self._workers.map(Request(*map(_listed, request)) for request in requests)


def _listed(values: Tensor | None) -> list | None:
    return None if values is None else values.tolist()


class _BatchOf:
    """Reads one batch, in a worker."""

    def __init__(self, stored: Stored, transform: Callable[[Tensor], Tensor] | None) -> None:
        self._stored, self._transform = stored, transform

    def __call__(self, request: Request) -> Tensor:
        pixels = torch.empty((len(request.numbers), *self._stored.shape[1:]), dtype=self._stored.dtype)
        crops = request.crops or [None] * len(request.numbers)
        if request.seeds is None:
            for row, (number, crop) in enumerate(zip(request.numbers, crops, strict=True)):
                pixels[row] = self._stored.read(number, crop)
            return pixels
        with generators_kept():
            for row, (number, crop, seed) in enumerate(zip(request.numbers, crops, request.seeds, strict=True)):
                seed_generators(seed)
                pixels[row] = self._changed(number, crop)
        return pixels

    def _changed(self, number: int, crop: list[float] | None) -> Tensor:
        if self._transform is None:
            return self._stored.read(number, crop)
        picture = self._stored.picture(number) if crop is None else self._stored.read(number, crop)
        changed = self._transform(picture)
        got = f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        require(
            got == (wanted := f"{self._stored.dtype} {list(self._stored.shape[1:])}"),
            f"augmentation must return an image {wanted} (standardization follows it), got {got} of one "
            f"{list(picture.shape)}",
        )
        return changed
