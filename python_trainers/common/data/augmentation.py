"""Random changes of training images: drawn on the CPU and applied to whole batches, or anybody's function."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from python_trainers.common.errors import require


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image, in this order."""

    resized_crop: bool = False  # a random part is shown at full size; images in files alone
    transform: Callable[[Tensor], Tensor] | None = None  # anybody's, of one image [C, H, W] as stored
    padding: int = 0  # shifted by up to so many pixels both ways: a random crop after padding by as many
    flip: bool = False  # left and right exchanged, for every second image
    rotation: float = 0.0  # turned by up to so many degrees either way

    @property
    def given(self) -> str | None:
        """What the transform calls itself, the same in every process; None: there is none."""
        if self.transform is None:
            return None
        return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(self.transform)).split())

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What happens to each of ``count`` images: tensors of that first dimension, on the CPU."""
        draws = {}
        if self.padding:
            shifts = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator, device="cpu")
            draws["down"], draws["right"] = shifts
        if self.flip:
            draws["flipped"] = torch.randint(0, 2, (count,), generator=generator, device="cpu").bool()
        if self.rotation:
            draws["degrees"] = (2 * torch.rand(count, generator=generator, device="cpu") - 1) * self.rotation
        if self.resized_crop:
            # Applied where the files are decoded.
            draws["crop"] = torch.rand(count, 4, generator=generator, device="cpu")
        return draws

    def apply(self, pixels: Tensor, draws: dict[str, Tensor], background: float) -> Tensor:
        """``pixels`` [N, channels, height, width] as stored, changed by ``draws`` on their device."""
        if self.padding:
            pixels = shift(pixels, draws["down"], draws["right"], self.padding, background)
        if self.flip:
            pixels = torch.where(draws["flipped"].view(-1, 1, 1, 1), pixels.flip(3), pixels)
        if self.rotation:
            pixels = rotate(pixels, draws["degrees"], background)
        return pixels


def augmented_by(given: Augmentation | Callable[[Tensor], Tensor]) -> Augmentation:
    """``given`` itself, or of a function of one image [channels, height, width] the augmentation that is it alone."""
    if isinstance(given, Augmentation):
        return given
    require(
        callable(given),
        f"augmentation must be a function of an image [channels, height, width], got {type(given).__name__}",
    )
    return Augmentation(transform=given)


def standard_augmentation(image_shape: tuple[int, int, int]) -> Augmentation:
    """The usual augmentation by kind of image (channels, height, width).

    Colour: shifts by an eighth of the side (4 pixels of 32) and flips, as for CIFAR; grey, taken to be
    characters, which a flip would turn into others: shifts by a fourteenth (2 pixels of 28), at least 1.
    """
    channels, *sides = image_shape
    if channels == 3:
        return Augmentation(padding=min(sides) // 8, flip=True)
    return Augmentation(padding=max(1, min(sides) // 14))


def shift(pixels: Tensor, down: Tensor, right: Tensor, padding: int, background: float) -> Tensor:
    """Each image, padded all round, cut at (``down``, ``right``), int64 in [0, 2 padding]."""
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (padding,) * 4, value=background)
    # [N, channels, 2 padding + 1, 2 padding + 1, height, width]: all windows, a view that stores nothing
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(pixels), device=pixels.device), :, down, right]


def rotate(pixels: Tensor, degrees: Tensor, background: float) -> Tensor:
    """Each image turned counter-clockwise about its centre, the nearest pixel taken; float32."""
    height, width = pixels.shape[2:]
    angle = degrees.deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # From a place in the result to its source, in coordinates that run from -1 to 1 over either side.
    source = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1)
    grid = F.affine_grid(source.view(-1, 2, 3), list(pixels.shape), align_corners=False)
    # What comes from outside reads 0, hence the background is 0 meanwhile.
    return F.grid_sample(pixels.float() - background, grid, mode="nearest", align_corners=False) + background
