"""Four copies of every image, each turned by another multiple of 90 degrees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from python_trainers.common.data.augmentation import Augmentation, shift

TURNS = 4


@dataclass(frozen=True)
class FourRotations(Augmentation):
    """Image i becomes rows 4 i to 4 i + 3: row 4 i + r is turned counter-clockwise by 90 r degrees.

    What else happens to an image, a flip for example, happens to all its copies, before they are turned; only
    the shift is drawn for each copy on its own and comes last. Images must be square.
    """

    @classmethod
    def of(cls, augmentation: Augmentation) -> "FourRotations":
        """What ``augmentation`` does, and the rotations."""
        return cls(**vars(augmentation))

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """As :meth:`Augmentation.draw`, but for shifts of shape [count, 4]."""
        draws = super().draw(count, generator)
        if self.padding:
            shifts = torch.randint(0, 2 * self.padding + 1, (2, count, TURNS), generator=generator, device="cpu")
            draws["down"], draws["right"] = shifts
        return draws

    def apply(self, pixels: Tensor, draws: dict[str, Tensor], background: float) -> Tensor:
        """``pixels`` [N, channels, side, side] as stored, to [4 N, channels, side, side]."""
        before = Augmentation(flip=self.flip, rotation=self.rotation)
        pixels = four_rotations(before.apply(pixels, draws, background))
        if self.padding:
            down, right = (draws[name].flatten() for name in ("down", "right"))
            pixels = shift(pixels, down, right, self.padding, background)
        return pixels


def four_rotations(pixels: Tensor) -> Tensor:
    """``pixels`` [N, channels, side, side] by 0, 90, 180 and 270 degrees counter-clockwise: [4 N, ...]."""
    return torch.stack([torch.rot90(pixels, r, (2, 3)) for r in range(TURNS)], dim=1).flatten(0, 1)
