"""Batches of images that are known by their number."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from python_trainers.common.data.augmentation import Augmentation
from python_trainers.common.data.generators import SEEDS
from python_trainers.common.data.images import Images
from python_trainers.common.errors import require


class Batch(NamedTuple):
    """One step's images."""

    pixels: Tensor  # [B, channels, height, width] float32, augmented and standardised
    labels: Tensor  # [B] int64
    index: Tensor | None  # [B] int64, where each image stands among those the batches are drawn from; Loader: None


class Batches:
    """Shuffled, augmented batches of a few or many images.

    An epoch shows ``images_per_epoch`` images however few there are: a small set is gone through several
    times, in a new order each time, so runs with few and with many images take equally many steps. All is
    drawn in advance by one generator on the CPU: every device gets the same batches, and so does every place
    the images may be kept in, device memory or files.

    Consecutive batches of size b / k hold the images of one batch of size b, each augmented as there, if
    ``images_per_epoch`` is a multiple of b: so gradients can be accumulated over k of them.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,  # over all processes
        images_per_epoch: int,
        background: float,
        seed: int,
        accelerator: Accelerator,
        augmentation: Augmentation = Augmentation(padding=1),
        channels_last: bool = False,  # memory format of the pixels; values and shape are the same
    ) -> None:
        ranks = accelerator.num_processes
        require(
            batch_size % ranks == 0 and 0 < batch_size <= images_per_epoch,
            f"--batch-size must be 1 to {images_per_epoch} and a multiple of {ranks} processes, "
            f"got {batch_size}",
        )
        self._reader = images.reader(augmentation)
        self._images = images.to(accelerator.device)
        self._device = accelerator.device
        self._background = background
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._steps = images_per_epoch // batch_size
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._mine = slice(accelerator.process_index, None, ranks)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        count, available = self._steps * self._batch_size, len(self._images)
        passes = -(-count // available)
        orders = [torch.randperm(available, generator=self._generator, device="cpu") for _ in range(passes)]
        draws = {
            "index": torch.cat(orders)[:count],
            **self._augmentation.draw(count, self._generator),
        }
        if self._reader is not None and self._reader.draws:
            draws["seed"] = torch.randint(SEEDS, (count,), generator=self._generator, device="cpu")
        batches = {name: self._split(values) for name, values in draws.items()}
        pixels = self._stored(batches["index"], batches.pop("crop", None), batches.pop("seed", None))
        for stored, *values in zip(pixels, *batches.values(), strict=True):
            draw = dict(zip(batches, values, strict=True))
            stored = stored.to(self._device, non_blocking=True)
            changed = self._augmentation.apply(stored, draw, self._background)
            ready = self._images.standardise(changed).contiguous(memory_format=self._memory_format)
            index = draw["index"]
            yield Batch(ready, self._images.labels[index], index)

    def _stored(
        self, indices: list[Tensor], crops: list[Tensor] | None, seeds: list[Tensor] | None
    ) -> Iterator[Tensor]:
        """The images at each of ``indices`` as they are kept, or as they are read."""
        if self._reader is not None:
            return self._reader.read(indices, crops, seeds)
        return (self._images.pixels[index] for index in indices)

    def _split(self, values: Tensor) -> list[Tensor]:
        """``values``, one per image of an epoch, as this process's part of each batch, on its device."""
        return [batch[self._mine] for batch in values.to(self._device).split(self._batch_size)]

    def state_dict(self) -> dict[str, Tensor]:
        """What decides all batches to come."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])
