"""Options that trainers share: each takes up the groups it needs, ``class Args(DataOptions, RunOptions)``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from python_trainers.common.data import (
    Dataset,
    Images,
    corrupt_labels,
    few_images,
    image_count,
    load_dataset,
    long_tailed,
)
from python_trainers.common.errors import require
from python_trainers.common.recipe import TrainingOptions


@dataclass(frozen=True)
class RunOptions:
    """Where to write, which seed."""

    out: Path | None = None  # folder to write; None: out/METHOD, or out/METHOD-smoke
    seed: int = 0  # of the few images, the first weights and the batches; the test images are always the same
    smoke: bool = False  # a few epochs only, to see that everything works

    def folder(self, method: str) -> Path:
        """Where the run of ``method`` is written."""
        return self.out or Path("out", f"{method}-smoke" if self.smoke else method)


@dataclass(frozen=True)
class DataOptions:
    """Which images to learn from; the test images are always all of them, under their own labels."""

    dataset: str = "digits"  # digits: real 8x8 images that come with scikit-learn; docs/data.md: the others
    data_root: Path | None = None  # folder (npz: file) of a data set that does not come with a package
    download: bool = False  # let torchvision fetch its data set into --data-root if it is not there
    train_images: int | None = None  # labelled images for the student, None: all; the teacher sees all
    train_fraction: float | None = None  # the same as a share of the training split, 1: all
    imbalance: float = 1.0  # long tail: the first class keeps so many times the images of the last; 1: none
    noisy_labels: float = 0.0  # share of each class's training images that get another class's label


@dataclass(frozen=True)
class StudentOptions(TrainingOptions, DataOptions, RunOptions):
    """Options of a run that trains a network."""

    def completed(self) -> "StudentOptions":
        """The options with those filled in whose default depends on others."""
        return self


def load_data(options: DataOptions, *, seed: int) -> tuple[Dataset, Images]:
    """The data set after ``--imbalance`` and ``--noisy-labels``, and the training images to learn from.

    In this order: the tail is cut, labels are corrupted, few images are taken of what is left.
    """
    require(
        options.train_images is None or options.train_fraction is None,
        f"give --train-images or --train-fraction, not both, got {options.train_images} and "
        f"{options.train_fraction}",
    )
    dataset = load_dataset(options.dataset, options.data_root, download=options.download)
    train, classes = dataset.train, dataset.classes
    if options.imbalance != 1:
        train = train.subset(long_tailed(train.labels, options.imbalance, classes=classes, seed=seed))
    if options.noisy_labels != 0:
        wrong = corrupt_labels(train.labels, options.noisy_labels, classes=classes, seed=seed)
        train = replace(train, labels=wrong, clean_labels=train.labels)
    dataset = replace(dataset, train=train)
    count = options.train_images
    if options.train_fraction is not None:
        count = image_count(dataset, options.train_fraction)
    return dataset, few_images(dataset, count, seed=seed)


def data_configuration(options: DataOptions, dataset: Dataset) -> dict[str, Any]:
    """What of the data changes a run's result, under its name; beside it only the seed does."""
    return {
        "dataset": dataset.name,
        "train_images": options.train_images,
        "train_fraction": options.train_fraction,
        "imbalance": options.imbalance,
        "noisy_labels": options.noisy_labels,
    }
