"""Networks by name.

Every network has ``forward_features(images) -> [N, num_features]``, the layer before the classifier, and
``head``, the classifier; its logits are ``head(forward_features(images))``.
"""

from torch import nn

from python_trainers.common.errors import require
from python_trainers.common.models.small import SmallConvNet, SmallMLP, SmallResNet

NETWORKS: dict[str, type[nn.Module]] = {
    "small_resnet": SmallResNet,
    "small_convnet": SmallConvNet,
    "small_mlp": SmallMLP,
}


def require_network(name: str) -> None:
    """Refuse a name that is not in ``NETWORKS``."""
    require(name in NETWORKS, f"unknown network {name!r}; there is: {', '.join(NETWORKS)}")


def build_network(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A freshly initialised network for images of ``image_shape`` (channels, height, width)."""
    require_network(name)
    return NETWORKS[name](image_shape, classes)
