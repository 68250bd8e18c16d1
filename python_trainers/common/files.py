"""Files of a run: a reader, or a crash, never meets half of one, and a failure is one sentence."""

import json
from pathlib import Path
from typing import Any

from kdkernels import _files
from python_trainers.common.errors import TrainerError


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, which holds the old content or all of the new, whatever happens on the way."""
    try:
        _files.write_atomically(path, content)
    except OSError as error:
        raise TrainerError(
            f"cannot write {path}: {error.strerror}; the earlier files are untouched: "
            "mend the cause (free space, permissions) and the same command continues after the last epoch"
        ) from error


def require_writable(folder: Path, option: str = "--out", name: str = "writable") -> None:
    """Refuse a ``folder``, given by ``option``, that cannot be made or in which no file ``name`` can be written."""
    probe = folder / f".{name}.tmp"  # as a file is called while it is written
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of the run may have been faster
    except OSError as error:
        raise TrainerError(f"cannot write in {folder}: {error.strerror}; give another {option}") from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
