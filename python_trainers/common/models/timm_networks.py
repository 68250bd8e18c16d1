"""timm's classifiers, freshly initialised, as they are and read by hooks."""

from functools import partial
from typing import Any

from python_trainers.common.errors import TrainerError, require
from python_trainers.common.models.network import Factory, ImageShape
from python_trainers.common.models.tapped import Tapped
from python_trainers.common.names import listing

LISTED = 20  # of more than a thousand names


def timm_network(name: str) -> Factory:
    """``timm:NAME``; what timm does not have is refused, and so is a machine without timm."""
    try:
        import timm
    except ImportError as error:
        raise TrainerError(f"network 'timm:{name}' needs the package timm: pip install timm") from error
    names = timm.list_models()
    require(
        name in names,
        f"unknown network 'timm:{name}'; of timm there is: {listing(name, names, limit=LISTED)}",
    )
    return partial(_timm, name=name)


def _timm(image_shape: ImageShape, classes: int, *, name: str) -> Tapped:
    import timm

    channels, height, width = image_shape
    options: dict[str, Any] = {}
    if timm.models.get_pretrained_cfg(name).fixed_input_size:  # as transformers with a weight per position
        options = {"img_size": (height, width)}
    return Tapped(timm.create_model(name, pretrained=False, in_chans=channels, num_classes=classes, **options))
