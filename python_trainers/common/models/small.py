"""Small networks for 8x8 images: a teacher and two students of a sixtieth of its size, or less."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class _Classifier(nn.Module):
    """Logits are ``head(forward_features(images))``; each network defines the two."""

    head: nn.Linear
    forward_features: Callable[[Tensor], Tensor]  # [N, channels, height, width] -> [N, num_features]

    @property
    def num_features(self) -> int:
        """Width of the layer before the classifier."""
        return self.head.in_features

    def forward(self, images: Tensor) -> Tensor:  # [N, channels, height, width] -> [N, classes]
        """Logits."""
        return self.head(self.forward_features(images))


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a way around them (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(_Classifier):
    """The teacher: three residual blocks, 32 to 64 channels; 151,000 weights on digits."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            _ResidualBlock(32, 32, stride=1),
            _ResidualBlock(32, 64, stride=2),
            _ResidualBlock(64, 64, stride=1),
        )
        self.head = nn.Linear(64, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean((2, 3))


class SmallConvNet(_Classifier):
    """A student: two convolutions with pooling; 1,900 weights on digits."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16 * (height // 4) * (width // 4), classes)

    def forward_features(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        return F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)


class SmallMLP(_Classifier):
    """A student without convolutions: one hidden layer of 32 units; 2,400 weights on digits."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.hidden = nn.Linear(channels * height * width, 32)
        self.head = nn.Linear(32, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return F.relu(self.hidden(images.flatten(1)))
