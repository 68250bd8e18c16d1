"""Wide residual networks (Zagoruyko, Komodakis 2016, https://arxiv.org/abs/1605.07146)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from python_trainers.common.errors import require
from python_trainers.common.models.network import (
    Factory,
    GlobalAveragePool,
    ImageShape,
    Network,
    initialise,
)


class _PreActivationBlock(nn.Module):
    """Normalisation and ReLU come before each of the two 3x3 convolutions (He et al. 2016b, figure 4e).

    Dropout comes before the second convolution (section 2.4).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.projection = None
        if stride != 1 or inputs != outputs:
            self.projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        y = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(activated)))))
        return y + (x if self.projection is None else self.projection(activated))


class WideResNet(Network):
    """Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times ``width`` channels.

    The map after a stage is the sum before the next block's activation, except the last, which is the
    activation that is pooled.
    """

    def __init__(
        self, image_shape: ImageShape, classes: int, *, depth: int, width: int, dropout: float
    ) -> None:
        blocks = (depth - 4) // 6
        channels = (16 * width, 32 * width, 64 * width)
        stages = []
        inputs = 16
        for outputs, stride in zip(channels, (1, 2, 2), strict=True):
            layers = [_PreActivationBlock(inputs, outputs, stride, dropout)]
            layers += [_PreActivationBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
            inputs = outputs
        stages[-1].extend([nn.BatchNorm2d(inputs), nn.ReLU()])
        super().__init__(
            stem=nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False),
            stages=stages,
            stage_channels=channels,
            pool=GlobalAveragePool(),
            head=nn.Linear(inputs, classes),
        )
        initialise(self)


def wide_resnet(depth: int, width: int, percent: int = 0) -> Factory:
    """``wrn_DEPTH_WIDTH`` and ``wrn_DEPTH_WIDTH_dropPERCENT``: ``percent`` of the activations are dropped.

    Depth 6 n + 4 with n >= 1, width >= 1, percent < 100; others are refused.
    """
    name = f"wrn_{depth}_{width}" + f"_drop{percent}" * (percent > 0)
    require(
        depth >= 10 and depth % 6 == 4,
        f"{name}: the depth must be 6 n + 4 (10, 16, 22, 28, 34, 40, ...), got {depth}",
    )
    require(width >= 1, f"{name}: the width must be >= 1, got {width}")
    require(percent < 100, f"{name}: dropout must be less than 100 percent, got {percent}")
    return partial(WideResNet, depth=depth, width=width, dropout=percent / 100)


PUBLISHED = ((16, 1), (16, 2), (28, 1), (28, 2), (28, 5), (28, 10), (40, 1), (40, 2))
NETWORKS: dict[str, Factory] = {
    f"wrn_{depth}_{width}": wide_resnet(depth, width) for depth, width in PUBLISHED
}
