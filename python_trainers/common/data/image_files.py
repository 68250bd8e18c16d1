"""Images in files, decoded when they are needed."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from python_trainers.common.data.eight_bits import eight_bits
from python_trainers.common.data.passes import shown
from python_trainers.common.data.reading import Stored
from python_trainers.common.errors import TrainerError


@dataclass(frozen=True)
class ImageFiles(Stored):
    """Image files that decode to one shape."""

    root: Path
    paths: np.ndarray  # [N] str, relative to root; an array, since forked workers would copy a list
    height: int
    width: int
    zoom: float = 1.0  # share of the largest central part of that aspect which is shown, in (0, 1]; 1: small images

    dtype = torch.uint8
    draws = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, channels (always red, green, blue), height, width."""
        return len(self.paths), 3, self.height, self.width

    def subset(self, index: Tensor) -> "ImageFiles":
        return replace(self, paths=self.paths[index.cpu().numpy()])

    def read(self, number: int, crop: Sequence[float] | None = None) -> Tensor:
        """Image ``number`` as [3, height, width] uint8: its central part, or the part ``crop`` chooses."""
        image = self._decode(number)
        if crop is None:
            box = central_box(*image.size, self.width / self.height, self.zoom)
        else:
            box = random_box(*image.size, *crop)
        return as_tensor(image.resize((self.width, self.height), Image.Resampling.BILINEAR, box))

    def picture(self, number: int) -> Tensor:
        """As :meth:`read`; of a photograph all of it, so that the augmentation chooses the part."""
        return self.read(number) if self.zoom == 1 else as_tensor(self._decode(number))

    def identity(self) -> bytes:
        """The names of the files."""
        return "\n".join(self.paths).encode()

    def _decode(self, number: int) -> Image.Image:
        path = self.root / self.paths[number]
        try:
            with Image.open(path) as image:
                return eight_bits(image).convert("RGB")
        except Exception as error:  # a damaged file can fail anywhere inside the decoder of its format
            raise unreadable(path, error) from error

    def decode_all(self) -> Tensor:
        """All images as one tensor [N, 3, height, width] uint8."""
        pixels = torch.empty(self.shape, dtype=torch.uint8)
        # Threads suffice: Pillow decodes outside the interpreter lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(self.read, range(len(pixels)))
            for number, image in enumerate(shown(decoded, "decod", str(self.root), len(pixels))):
                pixels[number] = image
        return pixels


def as_tensor(image: Image.Image) -> Tensor:
    """A picture of bytes as [channels, height, width] uint8."""
    values = torch.from_numpy(np.array(image))
    return values.unsqueeze(0) if values.ndim == 2 else values.permute(2, 0, 1)


def unreadable(path: Path, error: Exception) -> TrainerError:
    """What to raise for an image that cannot be decoded."""
    return TrainerError(f"image {path} cannot be read ({error}); replace or delete the file")


def central_box(width: int, height: int, aspect: float, zoom: float) -> tuple[float, float, float, float]:
    """Left, upper, right, lower of ``zoom`` times the largest central part of that width / height."""
    shown_height = zoom * min(height, width / aspect)
    shown_width = min(shown_height * aspect, width)  # rounding must not leave the image
    left, upper = (width - shown_width) / 2, (height - shown_height) / 2
    return left, upper, left + shown_width, upper + shown_height


def random_box(
    width: int, height: int, area: float, aspect: float, left: float, upper: float
) -> tuple[float, float, float, float]:
    """Left, upper, right, lower of a random part of an image, from four uniform numbers in [0, 1).

    Area 8 to 100 % of the image, aspect 3/4 to 4/3, uniform in its logarithm (Szegedy et al. 2015, "Going
    deeper with convolutions", section 6). A side that would be too long is cut to the image, where others
    draw again: the numbers drawn do not depend on the files.
    """
    wanted_area = (0.08 + 0.92 * area) * width * height
    wanted_aspect = (3 / 4) ** (1 - 2 * aspect)
    shown_width = min((wanted_area * wanted_aspect) ** 0.5, width)
    shown_height = min((wanted_area / wanted_aspect) ** 0.5, height)
    x, y = left * (width - shown_width), upper * (height - shown_height)
    return x, y, x + shown_width, y + shown_height
