"""ShuffleNets on small images, as in the distillation benchmark of Tian et al. 2020 (CRD): a 1x1 stem of
stride 1 and no max pooling.

V1: Zhang et al. 2018, https://arxiv.org/abs/1707.01083, table 1, three groups.
V2: Ma et al. 2018, https://arxiv.org/abs/1807.11164, table 5, width 1.

``tfkd_shufflenetv2`` is the V2 of the code of Yuan et al. 2020 (Tf-KD): convolutions with biases, a 3x3 stem
without activation, torch's own first weights.
"""

from functools import partial

import torch
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

STEM = 24
BLOCKS = (4, 8, 4)  # in each stage, the first of which halves the map; the same in both versions


class _GroupedUnit(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 of each channel on its own, grouped 1x1 (figure 2b).

    With stride 2 the averaged input is not added but put beside the result (figure 2c).
    """

    GROUPS = 3

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner_outputs = outputs - inputs if stride == 2 else outputs
        inner = inner_outputs // 4
        groups = 1 if inputs == STEM else self.GROUPS  # too few channels to group (section 3.2)
        self.stride = stride
        self.layers = nn.Sequential(
            *conv_norm(inputs, inner, 1, groups=groups),
            nn.ReLU(),
            nn.ChannelShuffle(groups),
            *conv_norm(inner, inner, 3, stride, groups=inner),
            nn.ReLU(),  # the paper has none here, the benchmark has
            *conv_norm(inner, inner_outputs, 1, groups=self.GROUPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        if self.stride == 1:
            return F.relu(y + x)
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


def _branch(inputs: int, inner: int, outputs: int, stride: int, bias: bool) -> list[nn.Module]:
    """V2: 1x1, 3x3 of each channel on its own, 1x1."""
    return [
        *conv_norm(inputs, inner, 1, bias=bias),
        nn.ReLU(),
        *conv_norm(inner, inner, 3, stride, groups=inner, bias=bias),
        *conv_norm(inner, outputs, 1, bias=bias),
        nn.ReLU(),
    ]


class _SplitUnit(nn.Module):
    """V2, stride 1: half of the channels pass, the other half is convolved (figure 3c)."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(*_branch(half, half, half, stride=1, bias=bias))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        passed, convolved = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([passed, self.branch(convolved)], dim=1))


class _DownUnit(nn.Module):
    """V2, stride 2: both branches see all channels (figure 3d)."""

    def __init__(self, inputs: int, outputs: int, tfkd: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.short = nn.Sequential(
            *conv_norm(inputs, inputs, 3, stride=2, groups=inputs, bias=tfkd),
            *conv_norm(inputs, half, 1, bias=tfkd),
            nn.ReLU(),
        )
        inner = inputs if tfkd else half  # the last convolution widens, or the first
        self.branch = nn.Sequential(*_branch(inputs, inner, half, stride=2, bias=tfkd))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(torch.cat([self.short(x), self.branch(x)], dim=1))


class ShuffleNetV1(Network):
    """Three stages of 240, 480 and 960 channels."""

    def __init__(self, image_shape: ImageShape, classes: int) -> None:
        channels = (240, 480, 960)
        stages = []
        inputs = STEM
        for outputs, blocks in zip(channels, BLOCKS, strict=True):
            units = [_GroupedUnit(inputs, outputs, stride=2)]
            units += [_GroupedUnit(outputs, outputs, stride=1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*units))
            inputs = outputs
        super().__init__(
            stem=nn.Sequential(*conv_norm(image_shape[0], STEM, 1), nn.ReLU()),
            stages=stages,
            stage_channels=channels,
            pool=GlobalAveragePool(),
            head=nn.Linear(inputs, classes),
        )
        initialise(self)


class ShuffleNetV2(Network):
    """Three stages of 116, 232 and 464 channels; the last ends with the 1x1 convolution to 1024."""

    def __init__(self, image_shape: ImageShape, classes: int, *, tfkd: bool = False) -> None:
        stages = []
        inputs = STEM
        for outputs, blocks in zip((116, 232, 464), BLOCKS, strict=True):
            units = [_SplitUnit(outputs, tfkd) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(_DownUnit(inputs, outputs, tfkd), *units))
            inputs = outputs
        stages[-1].extend([*conv_norm(inputs, 1024, 1, bias=tfkd), nn.ReLU()])
        stem = conv_norm(image_shape[0], STEM, 3 if tfkd else 1, bias=tfkd)
        super().__init__(
            stem=nn.Sequential(*stem, *([] if tfkd else [nn.ReLU()])),
            stages=stages,
            stage_channels=(116, 232, 1024),
            pool=GlobalAveragePool(),
            head=nn.Linear(1024, classes),
        )
        if not tfkd:
            initialise(self)


NETWORKS: dict[str, Factory] = {
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
    "tfkd_shufflenetv2": partial(ShuffleNetV2, tfkd=True),
}
