"""Writing files so that a reader, or a crash, never meets half of one."""

import json
import os
from pathlib import Path
from typing import Any

from python_trainers.common.errors import TrainerError


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, flush it to the disk, then rename it over ``path``.

    Whatever happens on the way (power cut, kill -9, full disk), ``path`` holds the old content or all of the
    new.
    """
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise TrainerError(
            f"cannot write {path}: {error.strerror}; the earlier files are untouched: "
            "mend the cause (free space, permissions) and the same command continues after the last epoch"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _flush_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
