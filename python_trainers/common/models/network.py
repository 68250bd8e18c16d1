"""The one form every network has, so that a method finds its way inside any of them:

    images   [N, channels, height, width]
    stem, stage_modules[0], ..., stage_modules[-1]    in turn; after each stage a map [N, C_i, H_i, W_i]
    pool     the last map -> features [N, num_features]
    head     features -> logits [N, classes]

Losses on maps read ``stages``, losses on the layer before the classifier ``with_features``. Networks that
share their first stages have ``stage_modules[i:]``, ``pool`` and ``head`` of their own, and nothing else.
What a method may ask of any classifier, whatever its form inside, is :class:`Classifier`.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.func import functional_call

ImageShape = tuple[int, int, int]  # channels, height, width


class Classifier(nn.Module):
    """What a method may ask of a network: images [N, channels, height, width] in, logits [N, classes] out."""

    @property
    def classes(self) -> int:
        """Number of logits."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Width of the layer before the classifier."""
        raise NotImplementedError

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, num_features] and logits [N, classes] of one forward."""
        raise NotImplementedError

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps [N, C_i, H_i, W_i] in the order in which they are made."""
        raise NotImplementedError


class Network(Classifier):
    """A classifier of images; its parts run one after another and hold all of its weights."""

    def __init__(
        self,
        *,
        stem: nn.Module,  # images -> what the first stage takes
        stages: Sequence[nn.Module],  # each takes the map of the one before
        stage_channels: Sequence[int],  # C_i of each stage's map
        pool: nn.Module,  # [N, C, H, W] -> [N, num_features]
        head: nn.Linear,  # num_features -> classes
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stage_modules = nn.ModuleList(stages)
        self.stage_channels = tuple(stage_channels)
        self.pool = pool
        self.head = head

    @property
    def classes(self) -> int:
        return self.head.out_features

    @property
    def num_features(self) -> int:
        return self.head.in_features

    def stages(self, images: Tensor) -> list[Tensor]:
        """The feature map after every stage; the last one is what is pooled."""
        maps = []
        x = self.stem(images)
        for stage in self.stage_modules:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, images: Tensor) -> Tensor:  # [N, channels, height, width] -> [N, num_features]
        """What enters the classifier."""
        return self.pool(self.stages(images)[-1])

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.forward_features(images)
        return features, self.head(features)

    def forward(self, images: Tensor) -> Tensor:  # [N, channels, height, width] -> [N, classes]
        """Logits."""
        return self.head(self.forward_features(images))


Factory = Callable[[ImageShape, int], Classifier]  # of a network for images of that shape and so many classes


class GlobalAveragePool(nn.Module):
    """Mean over all positions, whatever the size of the map: [N, C, H, W] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def conv_norm(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """A convolution, padded so that stride 1 keeps the size, and batch normalisation; a bias has no effect."""
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
    ]


def output_shape(module: nn.Module, x: Tensor) -> Tensor:
    """The output for ``x``, both on the meta device; weights and random generators stay as they are."""
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    return functional_call(module, {name: weight.to("meta") for name, weight in weights.items()}, (x,))


def initialise(network: Network) -> None:
    """Draw convolutions from N(0, 2 / (outputs * kernel area)) (He et al. 2015, equation 14); biases are 0.

    That is what the CIFAR literature does. The rest stays as torch makes it: scale 1 and shift 0 of
    normalisation, linear layers uniform within +-1 / sqrt(inputs).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
