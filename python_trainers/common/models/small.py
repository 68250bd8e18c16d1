"""Small networks for images of 8x8 to 28x28: a teacher and two students, on digits a sixtieth of its size."""

import torch.nn.functional as F
from torch import Tensor, nn

from python_trainers.common.models.network import Factory, GlobalAveragePool, ImageShape, Network


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


class SmallResNet(Network):
    """The teacher: three residual blocks, 32 to 64 channels; 151,000 weights on digits."""

    def __init__(self, image_shape: ImageShape, classes: int) -> None:
        super().__init__(
            stem=nn.Sequential(
                nn.Conv2d(image_shape[0], 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
            ),
            stages=[
                _ResidualBlock(32, 32, stride=1),
                _ResidualBlock(32, 64, stride=2),
                _ResidualBlock(64, 64, stride=1),
            ],
            stage_channels=(32, 64, 64),
            pool=GlobalAveragePool(),
            head=nn.Linear(64, classes),
        )


class SmallConvNet(Network):
    """A student: two convolutions with pooling; 1,900 weights on digits."""

    def __init__(self, image_shape: ImageShape, classes: int) -> None:
        channels, height, width = image_shape
        super().__init__(
            stem=nn.Identity(),
            stages=[
                nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            ],
            stage_channels=(8, 16),
            pool=nn.Flatten(),
            head=nn.Linear(16 * (height // 4) * (width // 4), classes),
        )


class SmallMLP(Network):
    """A student without convolutions: a hidden layer of 32 units, its map; 2,400 weights on digits."""

    def __init__(self, image_shape: ImageShape, classes: int) -> None:
        channels, height, width = image_shape
        super().__init__(
            stem=nn.Flatten(),
            stages=[
                nn.Sequential(
                    nn.Linear(channels * height * width, 32), nn.ReLU(), nn.Unflatten(1, (32, 1, 1))
                )
            ],
            stage_channels=(32,),
            pool=nn.Flatten(),
            head=nn.Linear(32, classes),
        )


NETWORKS: dict[str, Factory] = {
    "small_resnet": SmallResNet,
    "small_convnet": SmallConvNet,
    "small_mlp": SmallMLP,
}
