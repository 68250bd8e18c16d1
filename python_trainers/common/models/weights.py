"""Weights of networks in files: those of any origin read, ours written so that others read them.

    .safetensors      read and written; the names are those of the module that timm or torchvision has
    .pt, .pth, ...    read: a state dict, alone or in a dict beside other things, and our runs' checkpoints
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from python_trainers.common.checkpoint import FORMAT, checkpoint_path, load_checkpoint
from python_trainers.common.errors import TrainerError, require
from python_trainers.common.files import write_atomically
from python_trainers.common.models.names import kind
from python_trainers.common.models.network import ImageShape

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
WRAPPERS = ("module.", "_orig_mod.")  # of data-parallel training, of Tapped and of torch.compile
SHOWN = 3  # names of each kind in an error message


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict that a file, or the folder of a run, holds, on the CPU.

    Prefixes that wrappers put before every name are taken off. Raises ``TrainerError`` for a file that cannot
    be read or that holds no state dict. Nothing in it is executed.
    """
    path = checkpoint_path(path) if path.is_dir() else path
    require(path.exists(), f"weights {path} do not exist")
    if path.suffix == ".safetensors":
        try:
            return _bare(safetensors.torch.load_file(path))
        except Exception as error:
            raise TrainerError(
                f"weights {path} cannot be read as safetensors ({_first_line(error)})"
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive, or a pickle that wants to run code
        raise TrainerError(
            f"weights {path} cannot be read as tensors alone ({_first_line(error)}); save module.state_dict()"
        ) from error
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _bare(load_checkpoint(path)["tracked"]["model"])  # checks the file's checksums as well
    candidates = [content, *(content.get(key) for key in CONTAINERS)] if isinstance(content, dict) else []
    for candidate in candidates:
        if _is_state_dict(candidate):
            return _bare(candidate)
    found = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else type(content).__name__
    raise TrainerError(
        f"weights {path} hold no state dict (names and tensors), alone or under one of "
        f"{', '.join(CONTAINERS)}; found: {found}"
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Give ``module`` the weights in ``path``, under its own names or those of timm's or torchvision's network.

    What does not fit is refused with the first names of both sides; the module then has its old weights.
    """
    weights = read_weights(path)
    own = module.state_dict()
    originals = original_names(module)
    bare = dict(zip(_bare(own), own, strict=True))
    foreign = {name: key for key, name in originals.items()}
    names = max(foreign, bare, key=lambda names: len(names.keys() & weights.keys()))  # those of the file
    missing = [name for name in names if name not in weights]
    unexpected = [name for name in weights if name not in names]
    other_shape = [
        f"{name} {list(weights[name].shape)} there, {list(own[key].shape)} here"
        for name, key in names.items()
        if name in weights and weights[name].shape != own[key].shape
    ]
    differences = [
        f"{what} {_few(entries)}"
        for what, entries in (
            ("missing there:", missing),
            ("unknown here:", unexpected),
            ("of another shape:", other_shape),
        )
        if entries
    ]
    require(
        not differences,
        f"weights {path} do not fit the {kind(module)} here; {'; '.join(differences)}; "
        "name the network that they are of, with its images and classes",
    )
    module.load_state_dict({key: weights[name] for name, key in names.items()})


def export_weights(
    module: nn.Module, path: Path, *, name: str, image_shape: ImageShape, classes: int
) -> None:
    """Write the bare weights of ``module`` as safetensors: timm's and torchvision's own code loads them.

    The file's metadata tell ``network`` (the name given), ``architecture`` (timm's or torchvision's name, else
    the same), ``image_shape`` ("3x32x32") and ``classes``.
    """
    state = module.state_dict()
    weights = {
        original: state[key].detach().cpu().contiguous().clone()  # two names of one tensor become two
        for key, original in original_names(module).items()
    }
    family, _, architecture = name.rpartition(":")
    metadata = {
        "format": "pt",
        "network": name,
        "architecture": architecture if family in ("timm", "torchvision") else name,
        "image_shape": "x".join(map(str, image_shape)),
        "classes": str(classes),
    }
    write_atomically(path, safetensors.torch.save(weights, metadata))


def original_names(module: nn.Module) -> dict[str, str]:
    """Name of each weight in ``module.state_dict()`` -> its name in the module that others have."""
    keys = list(module.state_dict())
    names = dict(zip(keys, _bare(dict.fromkeys(keys)), strict=True))
    translated: Mapping[str, str] = getattr(module, "original_names", {})
    return {key: translated.get(key, name) for key, name in names.items()}


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _bare(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefixes that all names have in common because of a wrapper."""
    bare = dict(weights)
    while bare and (wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in bare)), None)):
        bare = {name.removeprefix(wrapper): value for name, value in bare.items()}
    return bare


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
