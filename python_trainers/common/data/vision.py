"""Data sets that torchvision knows, in its folder layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from python_trainers.common.data.arrays import channels_first
from python_trainers.common.data.augmentation import Augmentation, standard_augmentation
from python_trainers.common.data.checks import contents, count_classes
from python_trainers.common.data.images import Dataset, Images, Standard
from python_trainers.common.errors import TrainerError


@dataclass(frozen=True)
class VisionSet:
    """What torchvision does not say about one of its data sets."""

    kind: str  # class in torchvision.datasets
    train: dict[str, Any]  # arguments that choose the training split
    test: dict[str, Any]
    augmentation: Augmentation | None = None  # None: the standard one for such images
    mean: Sequence[float] | None = None  # published figures of the training pixels; None: computed
    std: Sequence[float] | None = None


BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}

VISION_SETS = {
    "cifar10": VisionSet(
        "CIFAR10", **BY_FLAG, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
    ),
    "cifar100": VisionSet(
        "CIFAR100", **BY_FLAG, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)
    ),
    "mnist": VisionSet("MNIST", **BY_FLAG),
    # Zhong et al. 2020, "Random Erasing Data Augmentation", section 4.1
    "fashionmnist": VisionSet("FashionMNIST", **BY_FLAG, augmentation=Augmentation(padding=4, flip=True)),
    "stl10": VisionSet("STL10", **BY_NAME),
    "svhn": VisionSet("SVHN", **BY_NAME, augmentation=Augmentation(padding=4)),  # digits: no flip
}


def vision_set(name: str, root: Path, download: bool) -> Dataset:
    """The data set ``name`` of ``VISION_SETS`` under ``root``; fetched first if ``download`` and absent."""
    from torchvision import datasets  # takes a second to import, which only these data sets need

    described = VISION_SETS[name]
    kind = getattr(datasets, described.kind)
    if download:
        _download(name, kind, root)
    _require_files(name, kind, root)
    try:
        train, test = (_images(kind(root, **split)) for split in (described.train, described.test))
    except Exception as error:  # torchvision parses several formats, each failing in its own way
        damaged = _damaged_file(kind, root)
        raise TrainerError(
            f"{damaged} is damaged or not the original file of {name}; delete it and add --download"
            if damaged
            else f"--dataset {name} in {root} cannot be read ({error}); delete it and add --download"
        ) from error
    standard = (
        Standard.published(described.mean, described.std) if described.mean else Standard.of(train.pixels)
    )
    return Dataset(
        name=name,
        train=replace(train, standard=standard),
        test=replace(test, standard=standard),
        classes=count_classes(train.labels, test.labels, root),
        augmentation=described.augmentation or standard_augmentation(train.pixels.shape[1:]),
    )


def _images(split: Any) -> Images:
    """A split as torchvision holds it, as tensors."""
    labels = split.targets if hasattr(split, "targets") else split.labels
    return Images(channels_first(torch.as_tensor(split.data)), torch.as_tensor(labels).long())


def _download(name: str, kind: Any, root: Path) -> None:
    """Fetch what is absent, once per machine however many processes train."""
    described = VISION_SETS[name]
    with PartialState().local_main_process_first():
        try:
            for split in (described.train, described.test):
                kind(root, **split, download=True)
        except (OSError, RuntimeError) as error:  # network, disk; a file that arrived damaged
            reason = " ".join(str(error).split())  # some are tables of mirrors
            raise TrainerError(f"--download of {name} to {root} failed ({reason})") from error


def _files(kind: Any) -> dict[Path, str | None]:
    """Every file below the root that torchvision will read, and its MD5 if torchvision compares it."""
    if hasattr(kind, "resources"):  # MNIST and its kin: unpacked from what these name
        return {Path(kind.__name__, "raw", Path(packed).stem): None for packed, _ in kind.resources}
    if hasattr(kind, "split_list"):  # SVHN
        return {Path(file): md5 for _, file, md5 in (kind.split_list["train"], kind.split_list["test"])}
    meta = [(kind.meta["filename"], kind.meta["md5"])] if hasattr(kind, "meta") else []
    return {Path(kind.base_folder, file): md5 for file, md5 in (*kind.train_list, *kind.test_list, *meta)}


def _require_files(name: str, kind: Any, root: Path) -> None:
    """Refuse a folder that lacks one of the files."""
    missing = [path for path in _files(kind) if not (root / path).is_file()]
    if missing:
        folder = next(parent for parent in (root / missing[0]).parents if parent.is_dir())
        raise TrainerError(
            f"--dataset {name} needs {root / missing[0]}, which is missing ({folder} holds "
            f"{contents(folder)}); mend --data-root, or add --download"
        )


def _damaged_file(kind: Any, root: Path) -> Path | None:
    """The first file whose MD5 is not the one torchvision expects, if any."""
    from torchvision.datasets.utils import check_integrity

    files = _files(kind).items()
    return next((root / path for path, md5 in files if md5 and not check_integrity(root / path, md5)), None)
