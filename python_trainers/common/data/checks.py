"""Checks of a data set that was read, whatever it was read from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from python_trainers.common.errors import require


def count_classes(train: Tensor, test: Tensor, where: Path | str) -> int:
    """Number of classes of two int64 label tensors: both must have the classes 0, 1, 2, ... without gap."""
    for split, labels in (("training", train), ("test", test)):
        require(len(labels) > 0, f"{where} has no {split} images")
        require(
            int(labels.min()) >= 0, f"{where}: {split} labels must be 0, 1, 2, ..., got {int(labels.min())}"
        )
    seen, tested = set(train.unique().tolist()), set(test.unique().tolist())
    require_same_classes(seen, tested, where)
    classes = len(seen)
    require(
        max(seen) == classes - 1,
        f"{where}: the labels of {classes} classes must be 0 to {classes - 1}, got labels up to {max(seen)}",
    )
    require(classes >= 2, f"{where} has images of one class only; a classifier needs at least 2")
    return classes


def require_same_classes(train: Iterable[Any], test: Iterable[Any], where: Path | str) -> None:
    """Refuse classes that only one of the splits has."""
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    found = [
        f"{listing(classes)} in the {split} split alone"
        for split, classes in (("training", only_train), ("test", only_test))
        if classes
    ]
    require(
        not found, f"{where}: training and test images must be of the same classes, got {', '.join(found)}"
    )


def listing(names: Iterable[Any], most: int = 10) -> str:
    """The first ``most`` of ``names``, separated by commas."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def contents(folder: Path) -> str:
    """What ``folder`` holds, for messages about what it lacks."""
    return listing(sorted(entry.name for entry in folder.iterdir())) or "nothing"
