"""Data sets by name, subsets by seed, and batches; docs/data.md describes them."""

from pathlib import Path

from python_trainers.common.data.arrays import npz
from python_trainers.common.data.augmentation import Augmentation, augmented_by
from python_trainers.common.data.batches import Batch, Batches
from python_trainers.common.data.checks import contents
from python_trainers.common.data.digits import digits
from python_trainers.common.data.folders import image_folder
from python_trainers.common.data.given import given_dataset
from python_trainers.common.data.images import Dataset, Images
from python_trainers.common.data.loaded import LoadedImages, require_numbers
from python_trainers.common.data.loader import Loader
from python_trainers.common.data.sources import Joined, Stream, source_of
from python_trainers.common.data.splits import (
    class_splits,
    corrupt_labels,
    few_images,
    hold_out,
    image_count,
    long_tailed,
    stratified,
)
from python_trainers.common.data.vision import VISION_SETS, vision_set
from python_trainers.common.errors import TrainerError, require

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "Batches",
    "Dataset",
    "Images",
    "Joined",
    "LoadedImages",
    "Loader",
    "Stream",
    "augmented_by",
    "class_splits",
    "corrupt_labels",
    "few_images",
    "given_dataset",
    "hold_out",
    "image_count",
    "load_dataset",
    "long_tailed",
    "require_numbers",
    "source_of",
    "stratified",
]

DATASETS = ("digits", *VISION_SETS, "imagefolder", "npz")


def load_dataset(name: str, data_root: Path | None, *, download: bool = False) -> Dataset:
    """The data set called ``name``, read from ``data_root`` unless it comes with a package.

    ``download`` lets torchvision fetch one of its data sets into ``data_root``; nothing else is ever fetched.
    """
    require(name in DATASETS, f"unknown --dataset {name!r}; there is: {', '.join(DATASETS)}")
    require(
        not download or name in VISION_SETS,
        f"--download fetches {', '.join(VISION_SETS)}; --dataset {name} cannot be fetched",
    )
    _require_place(name, data_root, download)
    if name == "digits":
        return digits()
    if name == "imagefolder":
        return image_folder(data_root)
    if name == "npz":
        return npz(data_root)
    return vision_set(name, data_root, download)


def _require_place(name: str, data_root: Path | None, download: bool) -> None:
    """Refuse a ``data_root`` that is not of the kind that ``name`` needs."""
    if data_root is None:
        require(name == "digits", f"--dataset {name} needs --data-root, the {_place(name)}")
        return
    if name == "npz":
        if not data_root.is_file():
            found = f"is a folder with {contents(data_root)}" if data_root.is_dir() else "does not exist"
            raise TrainerError(f"--dataset npz needs --data-root to be the .npz file, {data_root} {found}")
    elif not data_root.is_dir() and not (download and not data_root.exists()):
        folder = next(parent for parent in data_root.absolute().parents if parent.is_dir())
        raise TrainerError(f"--data-root {data_root} is not a folder; {folder} holds {contents(folder)}")


def _place(name: str) -> str:
    """What ``--data-root`` is for a data set."""
    if name == "npz":
        return ".npz file"
    if name == "imagefolder":
        return "folder with train/CLASS/*.jpg and test/CLASS/*.jpg"
    return "folder that holds it in torchvision's layout, or receives it with --download"
