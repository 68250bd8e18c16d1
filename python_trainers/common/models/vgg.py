"""VGG with batch normalisation on small images (Simonyan, Zisserman 2015, https://arxiv.org/abs/1409.1556).

``VGG`` is that of the distillation benchmark of Tian et al. 2020 (CRD), ``FullyConnectedVGG`` that of Chen et
al. 2020 (OKDDip). They differ in the end: the one averages over 4x4 positions, the other halves the map once
more, takes the maximum and has two hidden layers.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from python_trainers.common.models.network import (
    Factory,
    GlobalAveragePool,
    ImageShape,
    Network,
    initialise,
)

CHANNELS = (64, 128, 256, 512, 512)  # of the five groups


def _groups(channels: int, depths: Sequence[int], pooled: Sequence[bool]) -> list[nn.Sequential]:
    """Groups of ``depths[i]`` 3x3 convolutions; those ``pooled`` halve the map first."""
    groups = []
    inputs = channels
    for outputs, depth, halved in zip(CHANNELS, depths, pooled, strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if halved else []
        for _ in range(depth):
            # Biases have no effect before normalisation, but the published networks have them.
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        groups.append(nn.Sequential(*layers))
    return groups


class VGG(Network):
    """Five groups and a linear classifier. The fifth group halves the map only of images from 64 on."""

    def __init__(self, image_shape: ImageShape, classes: int, *, depths: Sequence[int]) -> None:
        channels, height, _ = image_shape
        super().__init__(
            stem=nn.Identity(),
            stages=_groups(channels, depths, pooled=(False, True, True, True, height >= 64)),
            stage_channels=CHANNELS,
            pool=GlobalAveragePool(),
            head=nn.Linear(CHANNELS[-1], classes),
        )
        initialise(self)


class _GlobalMaxPool(nn.Module):
    """Maximum over all positions: [N, C, H, W] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class FullyConnectedVGG(Network):
    """Five groups and three linear layers of 512 inputs; the features are those of the last."""

    def __init__(self, image_shape: ImageShape, classes: int, *, depths: Sequence[int]) -> None:
        super().__init__(
            stem=nn.Identity(),
            stages=_groups(image_shape[0], depths, pooled=(False, True, True, True, True)),
            stage_channels=CHANNELS,
            pool=nn.Sequential(
                _GlobalMaxPool(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()
            ),
            head=nn.Linear(512, classes),
        )
        initialise(self)


NETWORKS: dict[str, Factory] = {
    "vgg8": partial(VGG, depths=(1, 1, 1, 1, 1)),
    "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, depths=(2, 2, 3, 3, 3)),
    "vgg16_fc": partial(FullyConnectedVGG, depths=(2, 2, 3, 3, 3)),
}
