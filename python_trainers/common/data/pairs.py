"""Pairs of image and label as somebody's Dataset or DataLoader gives them, checked."""

import operator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from python_trainers.common.data.eight_bits import eight_bits
from python_trainers.common.data.image_files import as_tensor
from python_trainers.common.errors import TrainerError, require


def single(item: Any, where: str) -> tuple[Tensor, int]:
    """A Dataset's item as image [channels, height, width], uint8 or float32, and label; ``where``: of which data."""
    image, label = _pair(item, where, "(image, label)")
    return _image(image, where), _label(label, where)


def many(batch: Any, where: str) -> tuple[Tensor, Tensor]:
    """A DataLoader's batch as images [B, channels, height, width], uint8 or float32, and labels [B] int64."""
    images, labels = _pair(batch, where, "(images, labels)")
    images = _image(images, where, ndim=4)
    require(
        isinstance(labels, Tensor) and labels.shape == images.shape[:1] and _is_integer(labels.dtype),
        f"labels of {where} must be {len(images)} integers, one for each image, got {_described(labels)}",
    )
    return images, labels.long()


def _pair(item: Any, where: str, wanted: str) -> Any:
    require(
        isinstance(item, (tuple, list)) and len(item) == 2,
        f"{where} must be a pair {wanted}, got {_described(item)}",
    )
    return item


def _image(image: Any, where: str, ndim: int = 3) -> Tensor:
    if isinstance(image, Image.Image):
        try:
            image = eight_bits(image)
        except ValueError as error:
            raise TrainerError(f"image of {where} cannot be used ({error})") from error
        return as_tensor(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    shape = "[B, channels, height, width]" if ndim == 4 else "[channels, height, width]"
    require(
        isinstance(image, Tensor) and image.ndim == ndim and (image.dtype == torch.uint8 or image.is_floating_point()),
        f"image{'s' * (ndim == 4)} of {where} must be a float or uint8 tensor {shape}"
        f"{' or a PIL image' * (ndim == 3)}, got {_described(image)}",
    )
    return image if image.dtype == torch.uint8 else image.float()


def _label(label: Any, where: str) -> int:
    if not isinstance(label, (bool, np.bool_)) and not (isinstance(label, Tensor) and label.dtype == torch.bool):
        try:
            return operator.index(label)
        except TypeError:
            pass
    raise TrainerError(f"label of {where} must be an integer, the class, got {_described(label)}")


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def _described(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}".replace("torch.", "")
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, (int, float, str)) else type(value).__name__
