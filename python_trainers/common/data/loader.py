"""Batches of anybody's DataLoader."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from python_trainers.common.data.augmentation import Augmentation
from python_trainers.common.data.batches import Batch
from python_trainers.common.data.generators import SEEDS
from python_trainers.common.data.images import Standard, standardised
from python_trainers.common.data.loaded import generators_of
from python_trainers.common.data.pairs import many
from python_trainers.common.errors import TrainerError, require


class Loader:
    """Batches (images, labels) of anybody's DataLoader; one pass is an epoch.

    Its order and its transforms draw from torch's global generator, which a run saves, or from a generator of its
    own, which is saved here; python's and numpy's are seeded from torch's for every pass. So a continued run sees the
    batches of one never stopped, unless transforms draw in worker processes that outlive a pass
    (``persistent_workers``). Of several processes each loads every k-th image of each batch.
    """

    def __init__(
        self,
        loader: DataLoader,
        accelerator: Accelerator,
        *,
        standard: Standard | None = None,  # of the images; None: they are standardised
        augmentation: Augmentation = Augmentation(),  # of whole batches
        background: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        try:
            len(loader)
        except TypeError as error:
            raise TrainerError("a DataLoader to train from must have a length, that of its Dataset") from error
        require(
            augmentation.transform is None,
            "augmentation changes single images, the training data are a DataLoader: put it into the transform of its "
            "Dataset",
        )
        self._device = accelerator.device
        self._ranks = accelerator.num_processes
        self._loader = loader if self._ranks == 1 else _shared(loader, accelerator)
        self._generators = generators_of(loader)
        self._standard = standard and Standard(*(part.to(self._device) for part in standard))
        self._augmentation, self._background = augmentation, background
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        seed = int(torch.randint(SEEDS, (), device="cpu"))
        random.seed(seed)
        np.random.seed(seed)
        for number, batch in enumerate(self._loader):
            pixels, labels = many(batch, f"batch {number} of the DataLoader")
            draws = self._augmentation.draw(len(labels), torch.default_generator)
            draws = {name: values.to(self._device) for name, values in draws.items()}
            pixels = pixels.to(self._device, non_blocking=True)
            changed = self._augmentation.apply(pixels, draws, self._background)
            ready = standardised(changed, self._standard).contiguous(memory_format=self._memory_format)
            yield Batch(ready, labels.to(self._device, non_blocking=True), None)

    def state_dict(self) -> dict[str, Any]:
        """The generators that belong to the loader."""
        return {"generators": [generator.get_state() for generator in self._generators]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.set_state(saved)


def _shared(loader: DataLoader, accelerator: Accelerator) -> DataLoader:
    """A loader of this process's part of each batch of ``loader``."""
    require(
        loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset),
        f"{accelerator.num_processes} processes need a DataLoader with a batch size and a map-style Dataset, got one "
        f"of {type(loader.dataset).__name__}",
    )
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    kept += ("generator", "prefetch_factor", "persistent_workers")
    return DataLoader(
        loader.dataset,
        batch_sampler=_Share(loader.batch_sampler, accelerator.process_index, accelerator.num_processes),
        **{name: getattr(loader, name) for name in kept},
    )


class _Share:
    """Every k-th number of each batch of a sampler, as :class:`Batches` deals them out."""

    def __init__(self, batches: BatchSampler, rank: int, ranks: int) -> None:
        self._batches, self._rank, self._ranks = batches, rank, ranks

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            require(
                len(batch) % self._ranks == 0,
                f"batches of the DataLoader must be a multiple of {self._ranks} processes, got one of {len(batch)}; "
                "choose another batch_size or drop_last=True",
            )
            yield batch[self._rank :: self._ranks]
