"""Images in files, decoded when they are needed."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from python_trainers.common.errors import TrainerError

MAX_WORKERS = 8  # processes that decode, per training process


@dataclass(frozen=True)
class ImageFiles:
    """Image files that decode to one shape; stands where a tensor of pixels would."""

    root: Path
    paths: np.ndarray  # [N] str, relative to root; an array, since forked workers would copy a list
    height: int
    width: int
    zoom: float = 1.0  # share of the largest central part of that aspect which is shown, in (0, 1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, channels (always red, green, blue), height, width."""
        return len(self.paths), 3, self.height, self.width

    def __getitem__(self, index: Tensor) -> "ImageFiles":
        return replace(self, paths=self.paths[index.cpu().numpy()])

    def to(self, device: torch.device) -> "ImageFiles":
        """Files stay where they are; only what is read goes to a device."""
        return self

    def decode(self, number: int, crop: Sequence[float] | None = None) -> Tensor:
        """Image ``number`` as [3, height, width] uint8: its central part, or the part ``crop`` chooses."""
        path = self.root / self.paths[number]
        try:
            with Image.open(path) as image:
                if crop is None:
                    box = central_box(*image.size, self.width / self.height, self.zoom)
                else:
                    box = random_box(*image.size, *crop)
                image = image.convert("RGB").resize((self.width, self.height), Image.Resampling.BILINEAR, box)
        except Exception as error:  # a damaged file can fail anywhere inside the decoder of its format
            raise unreadable(path, error) from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def decode_all(self) -> Tensor:
        """All images as one tensor [N, 3, height, width] uint8."""
        pixels = torch.empty(self.shape, dtype=torch.uint8)
        # Threads suffice: Pillow decodes outside the interpreter lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(self.decode, range(len(pixels)))
            bar = tqdm(decoded, f"decoding {self.root}", len(pixels), unit="image", disable=None)
            for number, image in enumerate(bar):
                pixels[number] = image
        return pixels

    def read(
        self, indices: Sequence[Tensor], crops: Sequence[Tensor] | None = None, workers: int | None = None
    ) -> Iterator[Tensor]:
        """The images at each of ``indices`` [M], as [M, 3, height, width] uint8, decoded ahead by workers.

        ``crops``: for each of ``indices`` a tensor [M, 4] as for :func:`random_box`. Workers draw nothing, so
        their number and speed change no image.
        """
        if workers is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes))
        loader = DataLoader(
            _Requests(self, [index.cpu() for index in indices], crops and [crop.cpu() for crop in crops]),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws a number from the global one
        )
        for images in loader:
            if isinstance(images, TrainerError):
                raise images
            yield images


class _Requests(Dataset):
    """Item k is batch k, decoded; an error is handed over as a value, since raised it becomes a traceback."""

    def __init__(self, files: ImageFiles, indices: list[Tensor], crops: list[Tensor] | None) -> None:
        self._files, self._indices, self._crops = files, indices, crops

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, k: int) -> Tensor | TrainerError:
        numbers = self._indices[k].tolist()
        crops = [None] * len(numbers) if self._crops is None else self._crops[k].tolist()
        pixels = torch.empty((len(numbers), *self._files.shape[1:]), dtype=torch.uint8)
        try:
            for row, (number, crop) in enumerate(zip(numbers, crops, strict=True)):
                pixels[row] = self._files.decode(number, crop)
        except TrainerError as error:
            return error
        return pixels


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
