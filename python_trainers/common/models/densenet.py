"""DenseNet-BC for small images, without dropout (Huang et al. 2017, https://arxiv.org/abs/1608.06993)."""

from functools import partial

import torch
from torch import Tensor, nn

from python_trainers.common.errors import require
from python_trainers.common.models.network import (
    Factory,
    GlobalAveragePool,
    ImageShape,
    Network,
    initialise,
)


class _DenseLayer(nn.Module):
    """Appends ``growth`` channels, made from all that are there through a bottleneck four times as wide."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


def _transition(inputs: int) -> list[nn.Module]:
    """Halves the channels and the map."""
    return [
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, inputs // 2, 1, bias=False),
        nn.AvgPool2d(2),
    ]


class DenseNet(Network):
    """Three dense blocks of (depth - 4) / 2 layers in all; a remainder goes to the first blocks.

    A stage is a block with the transition before it. Its map is what the block concatenated, without
    activation; the last stage ends with the activation that is pooled.
    """

    def __init__(self, image_shape: ImageShape, classes: int, *, depth: int, growth: int) -> None:
        layers = (depth - 4) // 2
        inputs = 2 * growth
        stages, channels = [], []
        for index in range(3):
            stage = nn.Sequential()
            if index > 0:
                stage.extend(_transition(inputs))
                inputs //= 2
            for _ in range((layers + 2 - index) // 3):
                stage.append(_DenseLayer(inputs, growth))
                inputs += growth
            stages.append(stage)
            channels.append(inputs)
        stages[-1].extend([nn.BatchNorm2d(inputs), nn.ReLU()])
        super().__init__(
            stem=nn.Conv2d(image_shape[0], 2 * growth, 3, padding=1, bias=False),
            stages=stages,
            stage_channels=channels,
            pool=GlobalAveragePool(),
            head=nn.Linear(inputs, classes),
        )
        initialise(self)


def densenet(depth: int, growth: int) -> Factory:
    """``densenet_DEPTH_GROWTH``: even depth >= 10, growth >= 1; others are refused."""
    name = f"densenet_{depth}_{growth}"
    require(depth >= 10 and depth % 2 == 0, f"{name}: the depth must be even and >= 10, got {depth}")
    require(growth >= 1, f"{name}: the growth must be >= 1, got {growth}")
    return partial(DenseNet, depth=depth, growth=growth)


PUBLISHED = ((40, 12), (100, 12), (112, 33), (90, 60), (80, 80), (80, 120))
NETWORKS: dict[str, Factory] = {
    f"densenet_{depth}_{growth}": densenet(depth, growth) for depth, growth in PUBLISHED
}
