"""Images that are read when they are needed, ahead, by worker processes that live as long as their reader."""

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from python_trainers.common.data.generators import generators_kept, seed_generators
from python_trainers.common.errors import TrainerError, require

MAX_WORKERS = 8  # processes that read, per training process


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
        return self._workers.map(Request(*(None if part is None else part.tolist() for part in request)) for request in requests)


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
        wanted = f"{self._stored.dtype} {list(self._stored.shape[1:])}"
        require(isinstance(changed, Tensor), f"augmentation must return a tensor {wanted}, got {type(changed).__name__}")
        require(
            changed.dtype == self._stored.dtype and changed.shape == self._stored.shape[1:],
            f"augmentation must return an image {wanted} (standardization follows it), got {changed.dtype} "
            f"{list(changed.shape)} of one {list(picture.shape)}",
        )
        return changed


class Workers:
    """Processes that call ``function`` on requests, ahead of whoever takes the results, in order.

    They start with the first request and end with this object, which ``function`` must not refer to. A
    ``TrainerError`` in one is raised here.
    """

    def __init__(self, function: Callable[[Any], Any], workers: int | None = None) -> None:
        if workers is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes))
        self._calls, self._number = _Calls(function), workers
        self._requests = _Requests()
        self._loader = self._new_loader(self._requests)
        self._busy = False
        # The registry of finalizers keeps the loader out of any cycle of garbage: in one, its queues may be closed before
        # it tells its processes to end, and then it waits five seconds for each.
        weakref.finalize(self, _let_go, self._loader).atexit = False

    def map(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The results of ``requests``."""
        if self._busy:  # a second pass within the first gets processes of its own
            yield from self._results(self._new_loader(requests))
            return
        self._busy = True
        try:
            self._requests.now = requests
            yield from self._results(self._loader)
        finally:
            self._busy = False

    def _new_loader(self, requests: Iterable[Any]) -> DataLoader:
        return DataLoader(
            self._calls,
            batch_size=None,
            sampler=requests,
            num_workers=self._number,
            persistent_workers=self._number > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws a number from the global one
        )

    @staticmethod
    def _results(loader: DataLoader) -> Iterator[Any]:
        for result in loader:
            if isinstance(result, TrainerError):
                raise result
            yield result


def _let_go(loader: DataLoader) -> None:
    """The last reference goes with the call."""


class _Requests:
    """The sampler of a loader that outlives a pass: those of the pass that is going on."""

    now: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.now)


class _Calls(Dataset):
    """Item ``request`` is the function's result; an error is handed over, since raised it becomes a traceback."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._function(request)
        except TrainerError as error:
            return error
