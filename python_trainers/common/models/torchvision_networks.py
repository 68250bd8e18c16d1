"""torchvision's classifiers, freshly initialised, as a :class:`Network` where their form allows.

The forward of most calls their layers in the order in which they were defined. What comes before the pooling
is the trunk, and wherever the trunk shrinks the map a new stage begins. So a ResNet has five stages, the first
of them its stem. The others stay as they are and are read by hooks.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from python_trainers.common.errors import require
from python_trainers.common.models.network import Factory, ImageShape, Network, output_shape
from python_trainers.common.models.tapped import Tapped
from python_trainers.common.names import listing

TRACED_SIZE = 224  # stages are told apart on images of this height: small ones shrink to a pixel too soon
TAPPED = ("squeezenet", "swin", "vit")  # so begin those without linear classifier or maps [N, C, H, W]


class _Colours(nn.Module):
    """Grey images three times: [N, 1, H, W] -> [N, 3, H, W]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


class TorchvisionNetwork(Network):
    """torchvision's network of that name; its maps, features and classifier in our form."""

    def __init__(self, image_shape: ImageShape, classes: int, *, name: str) -> None:
        model = _model(name, classes)
        original = {id(value): key for key, value in model.state_dict(keep_vars=True).items()}
        trunk, pool, head = _parts(model)
        stages, channels = _stages(trunk)
        super().__init__(
            stem=_Colours() if image_shape[0] == 1 else nn.Identity(),
            stages=stages,
            stage_channels=channels,
            pool=nn.Sequential(*pool),
            head=head,
        )
        # Name of each weight here -> its name in torchvision's state dict.
        self.original_names = {
            key: original[id(value)] for key, value in self.state_dict(keep_vars=True).items()
        }


def torchvision_network(name: str) -> Factory:
    """``torchvision:NAME``; what torchvision does not have is refused."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    require(
        name in names,
        f"unknown network 'torchvision:{name}'; of torchvision there is: {listing(name, names)}",
    )
    return partial(_tapped if name.startswith(TAPPED) else TorchvisionNetwork, name=name)


def _tapped(image_shape: ImageShape, classes: int, *, name: str) -> Tapped:
    """The network as it is; grey images are shown three times, a ViT is built for the image's height."""
    channels, height, _ = image_shape
    model = _model(name, classes, **({"image_size": height} if name.startswith("vit") else {}))
    if channels == 1:
        model.register_forward_pre_hook(_coloured)
    # SqueezeNet pools its logits: the features are the map before the convolution that makes them.
    return Tapped(model, features="features" if name.startswith("squeezenet") else None)


def _coloured(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].expand(-1, 3, -1, -1),)


def _model(name: str, classes: int, **options: Any) -> nn.Module:
    """torchvision's own, freshly initialised."""
    from torchvision.models import get_model

    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    return get_model(name, weights=None, num_classes=classes, **options)


def _parts(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module], nn.Linear]:
    """Trunk, pooling and classifier."""
    from torchvision.models import DenseNet

    layers = _layers(model)
    end = next(
        i
        for i, layer in enumerate(layers)
        if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.Dropout, nn.Linear))
    )
    trunk, pool, head = layers[:end], layers[end:-1], layers[-1]
    # What some forwards call as functions:
    if isinstance(model, DenseNet):
        trunk.append(nn.ReLU())
    if not any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in pool):
        pool.insert(0, nn.AdaptiveAvgPool2d(1))
    if not any(isinstance(layer, nn.Flatten) for layer in pool):
        pool.insert(1, nn.Flatten())
    return trunk, pool, head


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers in order; plain containers are opened, blocks left whole."""
    layers = []
    for child in module.children():
        if type(child) in (nn.Sequential, nn.ModuleList):
            layers += _layers(child)
        else:
            layers.append(child)
    return layers


def _stages(trunk: list[nn.Module]) -> tuple[list[nn.Module], list[int]]:
    """The trunk cut where it shrinks the map, and the channels of each piece's map."""
    x = torch.empty(2, 3, TRACED_SIZE, TRACED_SIZE, device="meta")
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    size = 0
    for layer in trunk:
        x = output_shape(layer, x)
        # By a quarter at least: convolutions without padding take off a pixel or two, which makes no stage.
        if not stages or x.shape[2] < 0.75 * size:
            stages.append([])
            channels.append(0)
            size = x.shape[2]
        stages[-1].append(layer)
        channels[-1] = x.shape[1]
    return [nn.Sequential(*layers) for layers in stages], channels
