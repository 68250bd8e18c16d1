"""Data sets as tensors on the device, and batches drawn from them.

A small set lives on the device whole: no worker processes, no copies per step, and all batches are drawn from
one generator whose state is part of the checkpoint.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from python_trainers.common.errors import TrainerError, require

SPLIT_SEED = (
    0  # of train/test: never the run's seed, or a teacher of one run has seen the test images of another
)
DIGITS_TRAIN = 1000  # of 1,797; the other 797 are the test set


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    pixels: Tensor  # [N, channels, height, width] float32, standardised
    labels: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Images":
        """The images at ``index``."""
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> "Images":
        """The same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A classification task with its fixed split."""

    train: Images
    test: Images
    classes: int
    background: float  # value of an empty pixel after standardisation; what a shift moves in
    cpu_threads: int | None = None  # threads worth using without a GPU; None: torch's choice

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return tuple(self.train.pixels.shape[1:])


def digits(data_root: Path | None) -> Dataset:
    """Handwritten digits as 8x8 grey values (UCI Optical Recognition of Handwritten Digits, its test part).

    They come with scikit-learn, so ``data_root`` is not read.
    """
    raw = load_digits()
    images = Images(
        torch.from_numpy(raw.images).float().unsqueeze(1) / 16, torch.from_numpy(raw.target).long()
    )
    chosen = stratified(images.labels, DIGITS_TRAIN, seed=SPLIT_SEED)
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[chosen] = False
    train, test = images.subset(chosen), images.subset(rest.nonzero().squeeze(1))
    mean, std = train.pixels.mean(), train.pixels.std()
    train, test = (Images((part.pixels - mean) / std, part.labels) for part in (train, test))
    # One thread: a batch of 8x8 images is too little to share, and on a busy machine the threads' waiting for
    # each other makes the same run many times longer.
    return Dataset(train, test, classes=10, background=(-mean / std).item(), cpu_threads=1)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {"digits": digits}


def load_dataset(name: str, data_root: Path | None) -> Dataset:
    """The data set called ``name``, read from ``data_root`` unless it comes with a package."""
    require(name in DATASETS, f"unknown --dataset {name!r}; there is: {', '.join(sorted(DATASETS))}")
    if data_root is not None and not data_root.is_dir():
        raise TrainerError(f"--data-root {data_root} is not a folder; {_nearest_folder(data_root)}")
    return DATASETS[name](data_root)


def stratified(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Indices of ``count`` images, each class in proportion to its share of ``labels`` [N]; sorted."""
    chosen, _ = train_test_split(
        torch.arange(len(labels)).numpy(), train_size=count, stratify=labels.numpy(), random_state=seed
    )
    return torch.from_numpy(chosen).sort().values


def few_images(dataset: Dataset, count: int | None, *, seed: int) -> Images:
    """``count`` training images, stratified; all of them if ``count`` is None."""
    available = len(dataset.train)
    if count is None or count == available:
        return dataset.train
    require(
        dataset.classes <= count <= available - dataset.classes,
        f"--train-images must be {dataset.classes} (one per class) to {available - dataset.classes}, "
        f"or {available} (all), got {count}",
    )
    return dataset.train.subset(stratified(dataset.train.labels, count, seed=seed))


class Batches:
    """Shuffled, shifted batches of a few or many images; iterating once is one epoch.

    An epoch shows ``images_per_epoch`` images however few there are: a small set is gone through several
    times, in a new order each time, so runs with few and with many images take equally many steps. Every
    image is shifted by -1, 0 or 1 pixel both ways. The generator is on the CPU: every device gets the
    same batches.
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
    ) -> None:
        ranks = accelerator.num_processes
        require(
            batch_size % ranks == 0 and 0 < batch_size <= images_per_epoch,
            f"--batch-size must be 1 to {images_per_epoch} and a multiple of {ranks} processes, "
            f"got {batch_size}",
        )
        images = images.to(accelerator.device)
        self._labels = images.labels
        height, width = images.pixels.shape[2:]
        padded = F.pad(images.pixels, (1, 1, 1, 1), value=background)
        # [N, channels, 3, 3, height, width]: the nine shifts of each image, a view that stores nothing
        self._shifts = padded.unfold(2, height, 1).unfold(3, width, 1)
        self._batch_size = batch_size
        self._steps = images_per_epoch // batch_size
        self._mine = slice(accelerator.process_index, None, ranks)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, available, device = self._steps * self._batch_size, len(self._labels), self._labels.device
        orders = [torch.randperm(available, generator=self._generator) for _ in range(-(-count // available))]
        order = torch.cat(orders)[:count]
        down, right = torch.randint(0, 3, (2, count), generator=self._generator)
        draws = torch.stack([order, down, right]).to(device)
        for index, down, right in (batch[:, self._mine] for batch in draws.split(self._batch_size, dim=1)):
            yield self._shifts[index, :, down, right], self._labels[index]

    def state_dict(self) -> dict[str, Tensor]:
        """What decides all batches to come."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._generator.set_state(state["generator"])


def _nearest_folder(path: Path) -> str:
    """Say what the nearest existing folder above ``path`` holds."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    entries = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return (
        f"{folder} holds {', '.join(entries[:10]) + (', ...' if len(entries) > 10 else '') or 'no folders'}"
    )
