"""MobileNetV2 for small images (Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2).

``mobilenetv2_half`` is that of the distillation benchmark of Tian et al. 2020 (CRD), ``tfkd_mobilenetv2`` that
of the code of Yuan et al. 2020 (Tf-KD): convolutions with biases, ReLU6, a 1x1 stem that pads the image by a
pixel, torch's own first weights. ``mobilenetv2`` has the latter's width and strides in the former's form.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from python_trainers.common.models.network import (
    Factory,
    GlobalAveragePool,
    ImageShape,
    Network,
    conv_norm,
    initialise,
)

# Expansion, outputs and number of blocks of each of the paper's seven layers.
LAYERS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
STAGES = ((0, 2), (2, 3), (3, 5), (5, 7))  # the layers between the maps that Tian et al. 2020 (CRD) read


class _InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 convolution per channel, 1x1 projection; the input is added if shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, tfkd: bool) -> None:
        super().__init__()
        inner = inputs * expansion
        activation = nn.ReLU6 if tfkd else nn.ReLU
        self.layers = nn.Sequential(
            *conv_norm(inputs, inner, 1, bias=tfkd),
            activation(),
            *conv_norm(inner, inner, 3, stride, groups=inner, bias=tfkd),
            activation(),
            *conv_norm(inner, outputs, 1, bias=tfkd),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(Network):
    """Four stages of inverted residuals; the last ends with the 1x1 convolution to 1280 channels."""

    def __init__(
        self,
        image_shape: ImageShape,
        classes: int,
        *,
        width: float,  # factor of all channels but the last 1280
        stem_stride: int,
        strides: Sequence[int],  # of the seven layers
        tfkd: bool = False,  # the form of that code
    ) -> None:
        activation = nn.ReLU6 if tfkd else nn.ReLU
        inputs = stem_channels = int(32 * width)
        layers = []
        for (expansion, channels, blocks), stride in zip(LAYERS, strides, strict=True):
            outputs = int(channels * width)
            layer = [_InvertedResidual(inputs, outputs, stride, expansion, tfkd)]
            layer += [_InvertedResidual(outputs, outputs, 1, expansion, tfkd) for _ in range(blocks - 1)]
            layers.append(layer)
            inputs = outputs
        stages = [nn.Sequential(*(block for layer in layers[a:b] for block in layer)) for a, b in STAGES]
        stages[-1].extend([*conv_norm(inputs, 1280, 1, bias=tfkd), activation()])
        if tfkd:
            stem = [nn.Conv2d(image_shape[0], stem_channels, 1, padding=1), nn.BatchNorm2d(stem_channels)]
        else:
            stem = conv_norm(image_shape[0], stem_channels, 3, stem_stride)
        super().__init__(
            stem=nn.Sequential(*stem, activation()),
            stages=stages,
            stage_channels=[*(int(LAYERS[b - 1][1] * width) for _, b in STAGES[:-1]), 1280],
            pool=GlobalAveragePool(),
            head=nn.Linear(1280, classes),
        )
        if not tfkd:
            initialise(self)


WHOLE = partial(MobileNetV2, width=1, stem_stride=1, strides=(1, 2, 2, 2, 1, 1, 1))
NETWORKS: dict[str, Factory] = {
    "mobilenetv2_half": partial(MobileNetV2, width=0.5, stem_stride=2, strides=(1, 1, 2, 2, 1, 2, 1)),
    "mobilenetv2": WHOLE,
    "tfkd_mobilenetv2": partial(WHOLE, tfkd=True),
}
