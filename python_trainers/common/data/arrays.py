"""Images in an array file: ``x_train``, ``y_train``, ``x_test``, ``y_test`` of one ``.npz``."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from python_trainers.common.data.augmentation import standard_augmentation
from python_trainers.common.data.checks import count_classes, listing
from python_trainers.common.data.images import Dataset, Images, Standard, content_name
from python_trainers.common.errors import TrainerError, require

LAYOUTS = "[N, 1 or 3, height, width], [N, height, width, 1 or 3] or, grey, [N, height, width]"


def npz(path: Path) -> Dataset:
    """The data set in the file ``path``."""
    splits = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for split in ("train", "test"):
                x, y = f"x_{split}", f"y_{split}"
                absent = [key for key in (x, y) if key not in file]
                require(
                    not absent,
                    f"{path} has no {' and no '.join(absent)}; it must hold x_train, y_train, x_test and "
                    f"y_test, it holds {listing(file) or 'nothing'}",
                )
                splits[split] = _images(path, split, file[x], file[y])
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TrainerError(f"{path} cannot be read as an .npz file of plain arrays ({error})") from error
    train, test = splits["train"], splits["test"]
    shapes = [tuple(part.pixels.shape[1:]) for part in (train, test)]
    require(
        shapes[0] == shapes[1],
        f"{path}: images of x_train and x_test must have one shape (channels, height, width), got "
        f"{list(shapes[0])} and {list(shapes[1])}",
    )
    classes = count_classes(train.labels, test.labels, path)
    standard = Standard.of(train.pixels)
    train, test = (Images(part.pixels, part.labels, standard) for part in (train, test))
    return Dataset(
        name=f"npz {content_name(train, test)}",
        train=train,
        test=test,
        classes=classes,
        augmentation=standard_augmentation(shapes[0]),
    )


def channels_first(pixels: Tensor) -> Tensor:
    """``pixels`` in any of the layouts that ``LAYOUTS`` names, as [N, channels, height, width]."""
    if pixels.ndim == 3:
        return pixels.unsqueeze(1).contiguous()
    return (pixels if pixels.shape[1] in (1, 3) else pixels.permute(0, 3, 1, 2)).contiguous()


def _images(path: Path, split: str, pixels: np.ndarray, labels: np.ndarray) -> Images:
    """One split, checked."""
    require(
        pixels.dtype == np.uint8, f"{path}: x_{split} must be uint8, values 0 to 255, got {pixels.dtype}"
    )
    shape = list(pixels.shape)
    require(
        len(shape) == 3 or len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)),
        f"{path}: x_{split} must be {LAYOUTS}, got {shape}",
    )
    require(
        np.issubdtype(labels.dtype, np.integer) and list(labels.shape) == shape[:1],
        f"{path}: y_{split} must be {shape[0]} integers, a class for each image of x_{split}, got "
        f"{labels.dtype} {list(labels.shape)}",
    )
    return Images(channels_first(torch.from_numpy(pixels)), torch.from_numpy(labels.astype(np.int64)))
