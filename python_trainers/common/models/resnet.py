"""Residual networks on small images (He et al. 2016, https://arxiv.org/abs/1512.03385).

Three stages as in section 4.2, or four as on ImageNet but with a 3x3 stem and no max pooling. Where a stage
changes the shape, the way around is a 1x1 convolution with normalisation, as in the distillation benchmark of
Tian et al. 2020 (CRD), and not the paper's padding with zeros.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from python_trainers.common.models.network import (
    Factory,
    GlobalAveragePool,
    ImageShape,
    Network,
    conv_norm,
    initialise,
)


class _Residual(nn.Module):
    """relu(residual(x) + shortcut(x))."""

    def __init__(self, residual: list[nn.Module], inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(*residual)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


def basic_block(inputs: int, outputs: int, stride: int) -> _Residual:
    """Two 3x3 convolutions."""
    residual = [*conv_norm(inputs, outputs, 3, stride), nn.ReLU(), *conv_norm(outputs, outputs, 3)]
    return _Residual(residual, inputs, outputs, stride)


def bottleneck(inputs: int, outputs: int, stride: int, width: float = 0.25) -> _Residual:
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one has ``width * outputs`` channels."""
    inner = int(width * outputs)
    residual = [
        *conv_norm(inputs, inner, 1),
        nn.ReLU(),
        *conv_norm(inner, inner, 3, stride),
        nn.ReLU(),
        *conv_norm(inner, outputs, 1),
    ]
    return _Residual(residual, inputs, outputs, stride)


class ResNet(Network):
    """Stages of ``depths[i]`` blocks with ``channels[i]`` outputs; all stages but the first halve the map."""

    def __init__(
        self,
        image_shape: ImageShape,
        classes: int,
        *,
        block: Callable[[int, int, int], nn.Module],  # inputs, outputs, stride
        depths: Sequence[int],
        stem: int,  # channels before the first stage
        channels: Sequence[int],
    ) -> None:
        stages = []
        inputs = stem
        for index, (depth, outputs) in enumerate(zip(depths, channels, strict=True)):
            first = block(inputs, outputs, 1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(depth - 1))))
            inputs = outputs
        super().__init__(
            stem=nn.Sequential(*conv_norm(image_shape[0], stem, 3), nn.ReLU()),
            stages=stages,
            stage_channels=channels,
            pool=GlobalAveragePool(),
            head=nn.Linear(inputs, classes),
        )
        initialise(self)


def _basic(depth: int, width: int = 1) -> Factory:
    """Depth 6 n + 2: n blocks in each of three stages. The benchmark's wide ones have twice the stem."""
    n = (depth - 2) // 6
    stem = 16 if width == 1 else 32
    return partial(
        ResNet,
        block=basic_block,
        depths=(n, n, n),
        stem=stem,
        channels=(16 * width, 32 * width, 64 * width),
    )


def _bottleneck(depths: Sequence[int], width: float) -> Factory:
    """The bottleneck networks of Chen et al. 2020 (OKDDip): classic stem, four times the outputs."""
    block = partial(bottleneck, width=width)
    return partial(ResNet, block=block, depths=depths, stem=16, channels=(64, 128, 256))


def _imagenet(block: Callable[[int, int, int], nn.Module], depths: Sequence[int], expansion: int) -> Factory:
    """He et al. 2016, table 1."""
    channels = tuple(expansion * width for width in (64, 128, 256, 512))
    return partial(ResNet, block=block, depths=depths, stem=64, channels=channels)


NETWORKS: dict[str, Factory] = {
    "resnet20": _basic(20),
    "resnet32": _basic(32),
    "resnet56": _basic(56),
    "resnet110": _basic(110),
    "resnet8x4": _basic(8, width=4),
    "resnet32x4": _basic(32, width=4),
    "resnet110_bottleneck": _bottleneck((12, 12, 12), width=0.25),
    "wrn_20_8": _bottleneck((2, 2, 2), width=2),
    "resnet18": _imagenet(basic_block, (2, 2, 2, 2), expansion=1),
    "resnet34": _imagenet(basic_block, (3, 4, 6, 3), expansion=1),
    "resnet50": _imagenet(bottleneck, (3, 4, 6, 3), expansion=4),
}
