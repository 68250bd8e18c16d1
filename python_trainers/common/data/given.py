"""The user's own data in place of a data set by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from python_trainers.common.data.augmentation import Augmentation, augmented_by
from python_trainers.common.data.checks import count_classes
from python_trainers.common.data.images import Dataset, Images, Standard, content_name
from python_trainers.common.data.items import DatasetItems
from python_trainers.common.data.loaded import LoadedImages
from python_trainers.common.errors import require

Part = Images | LoadedImages


def given_dataset(
    dataset: tuple[Any, Any],  # training and test data
    augmentation: Augmentation | Callable[[Tensor], Tensor] | None = None,
    workers: int | None = None,  # processes that read; 0: this one, None: by the CPUs
) -> Dataset:
    """The data set made of (train, test): each a map-style torch Dataset of (image, label), or a DataLoader.

    Images are tensors [channels, height, width], float (taken as they are) or uint8 (standardised by the training
    images' mean and deviation), or PIL images, which become uint8; all of one shape. Labels are integers from 0,
    the same classes in both. A DataLoader gives batches of such. Random transforms are the Dataset's own: nothing
    is added but ``augmentation``, which changes each training image of a Dataset. Raises TrainerError.
    """
    require(
        isinstance(dataset, (tuple, list)) and len(dataset) == 2,
        f"dataset must be (train, test), two Datasets or DataLoaders, got {type(dataset).__name__}"
        + (f" of {len(dataset)}" if isinstance(dataset, (tuple, list)) else ""),
    )
    train, counts = _opened(dataset[0], "the training data", workers, standardize=True)
    test, _ = _opened(dataset[1], "the test data", workers, standardize=False)
    kinds = [(_dtype(part), list(part.image_shape)) for part in (train, test)]
    require(
        kinds[0] == kinds[1],
        "training and test images must be of one type and shape, got "
        + " and ".join(f"{dtype} {shape}" for dtype, shape in kinds),
    )
    standard = None if counts is None else Standard.counted(counts)
    classes = count_classes(_classes(train), _classes(test), "the given data")
    train, test = replace(train, standard=standard), replace(test, standard=standard)
    return Dataset(
        name=f"{_name(dataset[0], train)}, test {_name(dataset[1], test)}",
        train=train,
        test=test,
        classes=classes,
        augmentation=Augmentation() if augmentation is None else augmented_by(augmentation),
    ).read_by(workers)


def _opened(data: Any, where: str, workers: int | None, *, standardize: bool) -> tuple[Part, Tensor | None]:
    """One split and, where asked for and the images are uint8, how often each channel has each value."""
    if isinstance(data, DataLoader):
        return LoadedImages.of(data, where)
    require(
        hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset),
        f"{where} must be a map-style Dataset (with a length and numbered items) or a DataLoader, got "
        f"{type(data).__name__}",
    )
    items = DatasetItems.of(data, where)
    labels = items.labels()
    if labels is not None and not (standardize and items.dtype == torch.uint8):
        return Images(items, labels), None
    labels, counts = items.look_through(workers)
    return Images(items, labels), counts


def _classes(part: Part) -> Tensor:
    """Labels that occur."""
    return part.labels if isinstance(part, Images) else part.class_counts.nonzero().squeeze(1)


def _dtype(part: Part) -> torch.dtype:
    return part.pixels.dtype if isinstance(part, Images) else part.dtype


def _name(data: Any, part: Part) -> str:
    """Type, size and what is known without reading all: of a loader, whose order is not fixed, the labels' counts."""
    if isinstance(part, Images):
        return f"{type(data).__name__} {len(part)} {content_name(part)}"
    counts = "-".join(map(str, part.class_counts.tolist()[:10]))
    return f"DataLoader of {type(data.dataset).__name__} {len(part)} {counts}"
