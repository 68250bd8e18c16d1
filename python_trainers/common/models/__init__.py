"""Networks by name: those of ``NETWORKS``, and families with numbers or torchvision's or timm's name in theirs.

Each is a :class:`Classifier`, most are a :class:`Network`; docs/models.md lists them with their papers.
"""

import re

import torch

from python_trainers.common.checks import unknown
from python_trainers.common.errors import TrainerError, require
from python_trainers.common.models import (
    densenet,
    mobilenetv2,
    resnet,
    shufflenet,
    small,
    vgg,
    wide_resnet,
)
from python_trainers.common.models.network import Classifier, Factory, ImageShape, Network, output_shape
from python_trainers.common.models.tapped import Tapped
from python_trainers.common.models.timm_networks import timm_network
from python_trainers.common.models.torchvision_networks import torchvision_network
from python_trainers.common.models.trial import few_images

NETWORKS: dict[str, Factory] = {
    **small.NETWORKS,
    **resnet.NETWORKS,
    **wide_resnet.NETWORKS,
    **vgg.NETWORKS,
    **mobilenetv2.NETWORKS,
    **shufflenet.NETWORKS,
    **densenet.NETWORKS,
}
FAMILIES = (
    "wrn_DEPTH_WIDTH",
    "wrn_DEPTH_WIDTH_dropPERCENT",
    "densenet_DEPTH_GROWTH",
    "torchvision:NAME",
    "timm:NAME",
)


def require_network(name: str) -> None:
    """Refuse a name that no network has."""
    _factory(name)


def build_network(name: str, image_shape: ImageShape, classes: int) -> Classifier:
    """A freshly initialised network for images of ``image_shape`` (channels, height, width).

    Weights are drawn from torch's global generator. Raises ``TrainerError`` for an unknown name and for
    images that the network cannot take.
    """
    factory = _factory(name)
    shape = "x".join(map(str, image_shape))
    require(
        len(image_shape) == 3 and min(image_shape) >= 1,
        f"images must have a shape of (channels, height, width), each >= 1, got {shape}",
    )
    require(classes >= 1, f"classes must be >= 1, got {classes}")
    try:
        network = factory(image_shape, classes)
        if isinstance(network, Tapped):
            network.locate(few_images(network, image_shape))
        else:
            output_shape(network, torch.empty(2, *image_shape, device="meta"))
    except (RuntimeError, ValueError, AssertionError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TrainerError(
            f"network {name!r} cannot take images of {shape} (channels x height x width): {reason}; "
            "take other images or another network"
        ) from error
    return network


def _factory(name: str) -> Factory:
    if name in NETWORKS:
        return NETWORKS[name]
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)(?:_drop(\d+))?", name):
        return wide_resnet.wide_resnet(int(match[1]), int(match[2]), percent=int(match[3] or 0))
    if match := re.fullmatch(r"densenet_(\d+)_(\d+)", name):
        return densenet.densenet(depth=int(match[1]), growth=int(match[2]))
    if name.startswith("torchvision:"):
        return torchvision_network(name.removeprefix("torchvision:"))
    if name.startswith("timm:"):
        return timm_network(name.removeprefix("timm:"))
    raise unknown("network", name, [*NETWORKS, *FAMILIES], limit=100)
