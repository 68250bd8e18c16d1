"""A training run: one folder, written so that it can be stopped anywhere and continued exactly.

    OUT/checkpoint/state.pt    everything the run needs to go on, replaced after each epoch
    OUT/metrics.jsonl          a line per epoch
    OUT/summary.json           final figures, configuration, versions; written once, at the end

The checkpoint is the truth: metrics.jsonl is written from the history inside it, so a crash between the
two is mended when the run continues. Figures that differ from run to run, such as images per second, are
shown by the progress bar alone.
"""

import json
import math
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kdkernels
import torch
from accelerate import Accelerator, __version__ as accelerate_version
from torch import nn

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from python_trainers.common.errors import Diverged, TrainerError, require
from python_trainers.common.files import write_atomically, write_json
from python_trainers.common.seeding import random_states, restore_random_states


class Run:
    """The epochs of one training run and the files that hold them."""

    def __init__(
        self,
        folder: Path,
        network: str,  # name of the tracked model: what it takes to load the checkpoint on its own
        configuration: dict[str, Any],  # whatever else changes the result; a run made otherwise is refused
        *,
        epochs: int,
        accelerator: Accelerator,
    ) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.epochs = epochs
        self.history: list[dict[str, float]] = []  # one entry per finished epoch
        self.network = network
        self.configuration = {
            "network": network,
            "epochs": epochs,
            **configuration,
            "mixed_precision": accelerator.mixed_precision,
        }
        self._tracked: dict[str, Any] = {}
        self._saved: dict[str, Any] | None = None
        if checkpoint_path(folder).exists():
            self._saved = load_checkpoint(checkpoint_path(folder))
            require_same(folder, self._saved["configuration"], self.configuration)
            self.history = self._saved["history"]

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are trained and the summary, the last thing a run writes, is there."""
        return self._saved is not None and is_finished(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """Of a finished run."""
        return read_summary(self.folder)

    def track(self, **objects: Any) -> None:
        """Name what the checkpoint holds (model, optimizer: anything with a state_dict) and restore it."""
        self._tracked = {
            name: self.accelerator.unwrap_model(value) if isinstance(value, nn.Module) else value
            for name, value in objects.items()
        }
        if self.accelerator.scaler is not None:
            self._tracked["scaler"] = self.accelerator.scaler
        if self._saved is None:
            return
        self.restore(**self._tracked)
        restore_random_states(self._saved["random_states"], self.accelerator)
        self._write_metrics()

    def restore(self, **objects: Any) -> None:
        """Give ``objects`` the states that the checkpoint holds under their names."""
        try:
            for name, value in objects.items():
                value.load_state_dict(self._saved["tracked"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise TrainerError(
                f"checkpoint {checkpoint_path(self.folder)} does not fit ({reason}); give another --out"
            ) from error

    def remaining_epochs(self) -> Iterator[int]:
        """Numbers of the epochs still to train, from 1."""
        done = len(self.history)
        if 0 < done < self.epochs:
            self.accelerator.print(f"{self.folder} continues after epoch {done} of {self.epochs}")
        return iter(range(done + 1, self.epochs + 1))

    def end_epoch(self, epoch: int, **figures: float) -> None:
        """Record an epoch's figures and save the run."""
        for name, value in figures.items():
            if not math.isfinite(value):
                raise Diverged(f"{self.folder}: {name} is {value} in epoch {epoch}; lower --learning-rate")
        self.history.append({"epoch": epoch, **figures})
        states = random_states(self.accelerator)
        if not self.accelerator.is_main_process:
            return
        save_checkpoint(
            checkpoint_path(self.folder),
            {
                "network": self.network,
                "configuration": self.configuration,
                "epochs": self.epochs,
                "history": self.history,
                "tracked": {name: value.state_dict() for name, value in self._tracked.items()},
                "random_states": states,
            },
        )
        self._write_metrics()

    def finish(self, **figures: Any) -> dict[str, Any]:
        """Write summary.json and return it."""
        summary = {
            "figures": {**kept_entry(self.history), **figures},
            "configuration": self.configuration,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "accelerate": accelerate_version,
                "kdkernels": kdkernels.__version__,
                "device": str(self.accelerator.device),
                "processes": self.accelerator.num_processes,
                "cpu_threads": torch.get_num_threads(),
            },
        }
        if self.accelerator.is_main_process:
            write_json(self.folder / "summary.json", summary)
        self.accelerator.wait_for_everyone()  # before another process reads what this one wrote
        return self.summary

    def _write_metrics(self) -> None:
        if self.accelerator.is_main_process:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
            write_atomically(self.folder / "metrics.jsonl", lines.encode())


def require_same(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on in ``folder`` with other options than those ``saved`` there, naming both values."""
    changed = [
        f"{name} {saved.get(name)} there, {wanted.get(name)} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    require(
        not changed,
        f"{folder} holds a run with other options ({'; '.join(changed)}): give another --out, "
        "or the options it was started with to continue it",
    )


def is_finished(folder: Path) -> bool:
    """Whether a run ended there: the summary is the last thing it writes."""
    return (folder / "summary.json").exists()


def read_summary(folder: Path) -> dict[str, Any]:
    """What a finished run wrote."""
    return json.loads((folder / "summary.json").read_text())


def kept_entry(history: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the epoch whose weights a finished run kept: the last, or the best."""
    last = history[-1]
    return history[int(last.get("kept_epoch", last["epoch"])) - 1]
