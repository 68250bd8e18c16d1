"""A network tried out before anything is trained: does it give logits, and can it be trained as asked?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from python_trainers.common.errors import TrainerError, require
from python_trainers.common.models.names import kind
from python_trainers.common.models.network import ImageShape

FEW = 2  # images of a trial: as many as batch normalisation needs


def check_logits(module: nn.Module, image_shape: ImageShape, classes: int, who: str) -> None:
    """Refuse, in the name of ``who``, a module that gives no logits [N, classes] in evaluation mode.

    ``image_shape`` is (channels, height, width). The module, its buffers and modes and torch's generators are
    afterwards what they were. Raises ``TrainerError``.
    """
    _check(module, image_shape, classes, who, rows=FEW, training=False)


def check_training(module: nn.Module, image_shape: ImageShape, classes: int, rows: int, who: str) -> None:
    """Refuse a module that gives no logits [rows, classes] in training mode; leaves no trace either.

    ``rows`` is the number of images that one process shows it at a time. With a single one batch normalisation
    fails wherever the map has shrunk to one position: it would have one value per channel.
    """
    _check(module, image_shape, classes, who, rows=min(rows, FEW), training=True)


def few_images(module: nn.Module, image_shape: ImageShape, rows: int = FEW) -> Tensor:
    """Black images [rows, channels, height, width] where the module is."""
    return torch.zeros(rows, *image_shape, device=_device(module))


@contextmanager
def trial(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """What runs inside leaves no trace in the module's modes and buffers and in torch's generators."""
    device = _device(module)
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        module.train(training)
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            for part, name, buffer, value in buffers:
                setattr(part, name, buffer.copy_(value))


def _check(
    module: nn.Module, image_shape: ImageShape, classes: int, who: str, *, rows: int, training: bool
) -> None:
    require(isinstance(module, nn.Module), f"the {who} must be an nn.Module, got {module!r}")
    name = f"the {who} ({kind(module)})"
    shape = "x".join(map(str, image_shape))
    shown = f"{rows} image{'s' * (rows > 1)} of {shape} (channels x height x width)"
    when = "in training mode" if training else "in evaluation mode"
    require(
        not any(is_lazy(value) for value in (*module.parameters(), *module.buffers())),
        f"{name} has lazy layers without weights: show it one batch before you hand it over",
    )
    others = [key for key, value in module.state_dict().items() if not isinstance(value, Tensor)]
    require(not others, f"{name} has a state that is no tensor: {', '.join(others)}; keep it out of its state_dict")
    with trial(module, training=training):
        try:
            output = module(few_images(module, image_shape, rows))
        except Exception as error:  # a module of any origin can fail in any way
            reason = str(error).partition("\n")[0] or type(error).__name__
            remedy = "a larger --batch-size (or fewer processes)" if training and rows == 1 else "other images"
            raise TrainerError(
                f"{name} cannot take {shown} {when}: {reason}; take {remedy} or another network"
            ) from error
    require(
        isinstance(output, Tensor) and output.shape == (rows, classes) and output.is_floating_point(),
        f"{name} must give logits, a floating-point tensor [{rows}, {classes}], for {shown} of {classes} "
        f"classes {when}, got {_described(output)}; {_remedy(output, rows)}",
    )


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    if isinstance(output, dict) or hasattr(output, "keys"):
        return f"{type(output).__name__} with {', '.join(map(str, output.keys())) or 'no entries'}"
    return type(output).__name__


def _remedy(output: Any, rows: int) -> str:
    if isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 2 and len(output) == rows:
        return "give its last layer as many outputs as there are classes"
    return "wrap it in a module whose forward returns them alone"


def _device(module: nn.Module) -> torch.device:
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))
