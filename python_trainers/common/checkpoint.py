"""Checkpoint files: one file holds a whole run, so one rename replaces all of it or nothing."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from python_trainers.common.errors import TrainerError
from python_trainers.common.files import write_atomically

FORMAT = "kdkernels trainer checkpoint 1"


def checkpoint_path(run_folder: Path) -> Path:
    """Where a run keeps its state."""
    return run_folder / "checkpoint" / "state.pt"


def is_weights_file(path: Path) -> bool:
    """Whether a path names a file, a checkpoint or bare weights, and not the folder of a run."""
    return path.suffix in (".pt", ".pth", ".bin", ".safetensors")


def is_run(path: Path) -> bool:
    """Whether the file holds a run, as far as can be told without reading it whole; False: bare weights."""
    if path.suffix == ".safetensors":
        return False
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # damaged, absent: load_checkpoint says what is wrong
        return True
    return isinstance(state, dict) and "format" in state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``state``: tensors, numbers, strings, lists and dicts of them."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; a damaged or foreign file is refused with its name and the remedy."""
    try:
        # torch.load compares no checksums; the file is a zip archive, so Python can, and finds a flipped bit.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainerError(f"checkpoint {path} does not exist") from None
    except Exception as error:  # a damaged archive can fail anywhere inside zipfile, zlib or the unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainerError(
            f"checkpoint {path} cannot be read ({reason}); delete it to train anew, or give another path"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainerError(
            f"checkpoint {path} was not written by these trainers (expected format {FORMAT!r})"
        )
    return state


def fingerprint(network: nn.Module) -> str:
    """Short name of a network's weights: equal fingerprints, equal weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return "sha256:" + digest.hexdigest()[:16]
