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
from tqdm import tqdm

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from python_trainers.common.data import Dataset
from python_trainers.common.errors import TrainerError, require
from python_trainers.common.files import write_atomically, write_json
from python_trainers.common.models import build_network
from python_trainers.common.seeding import random_states, restore_random_states


class Run:
    """The epochs of one training run and the files that hold them."""

    def __init__(
        self,
        folder: Path,
        network: str,  # name of the tracked model in NETWORKS: the checkpoint can be loaded on its own
        configuration: dict[
            str, Any
        ],  # whatever else changes the result; a checkpoint made otherwise is refused
        *,
        epochs: int,
        accelerator: Accelerator,
    ) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.epochs = epochs
        self.history: list[dict[str, float]] = []  # one entry per finished epoch
        self.network = network
        self._configuration = {
            "network": network,
            "epochs": epochs,
            **configuration,
            "mixed_precision": accelerator.mixed_precision,
        }
        self._tracked: dict[str, Any] = {}
        self._saved: dict[str, Any] | None = None
        if checkpoint_path(folder).exists():
            self._saved = load_checkpoint(checkpoint_path(folder))
            require_same(folder, self._saved["configuration"], self._configuration)
            self.history = self._saved["history"]

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
        try:
            for name, value in self._tracked.items():
                value.load_state_dict(self._saved["tracked"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainerError(
                f"checkpoint {checkpoint_path(self.folder)} does not fit ({error}); give another --out"
            ) from error
        restore_random_states(self._saved["random_states"], self.accelerator)
        self._write_metrics()

    def remaining_epochs(self, images_per_epoch: int) -> Iterator[int]:
        """Numbers of the epochs still to train, from 1, under a progress bar that counts images."""
        done = len(self.history)
        if done == self.epochs:
            self.accelerator.print(
                f"{self.folder} is finished ({done} epochs); to train again, give another --out"
            )
            return
        if done:
            self.accelerator.print(f"{self.folder} continues after epoch {done} of {self.epochs}")
        with tqdm(
            desc=str(self.folder),
            total=self.epochs * images_per_epoch,
            initial=done * images_per_epoch,
            unit="image",
            unit_scale=True,
            disable=None if self.accelerator.is_main_process else True,  # None: unless stderr is a terminal
        ) as bar:
            for epoch in range(done + 1, self.epochs + 1):
                yield epoch
                bar.set_postfix(
                    {name: f"{value:.4g}" for name, value in self.history[-1].items()}, refresh=False
                )
                bar.update(images_per_epoch)

    def end_epoch(self, epoch: int, **figures: float) -> None:
        """Record an epoch's figures and save the run."""
        for name, value in figures.items():
            require(
                math.isfinite(value),
                f"{self.folder}: {name} is {value} in epoch {epoch}; lower --learning-rate",
            )
        self.history.append({"epoch": epoch, **figures})
        states = random_states(self.accelerator)
        if not self.accelerator.is_main_process:
            return
        save_checkpoint(
            checkpoint_path(self.folder),
            {
                "network": self.network,
                "configuration": self._configuration,
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
            "figures": {**self.history[-1], **figures},
            "configuration": self._configuration,
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
        return summary

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


def load_trained(path: Path, network_name: str, dataset: Dataset) -> tuple[nn.Module, float]:
    """The network of a finished run, from its folder or its checkpoint file, and its test accuracy in [0, 1].

    It must be a ``network_name`` trained on the same data set and number of classes.
    """
    state = load_checkpoint(checkpoint_path(path) if path.is_dir() else path)
    weights, trained_on = state["tracked"]["model"], state["configuration"]["dataset"]
    require(
        state["network"] == network_name,
        f"{path} holds a {state['network']}, this run needs a {network_name}: "
        "name its network or another path",
    )
    require(trained_on == dataset.name, f"{path} was trained on {trained_on}, this run needs {dataset.name}")
    classes = len(weights["head.weight"])
    require(
        classes == dataset.classes, f"{path} tells {classes} classes apart, this run needs {dataset.classes}"
    )
    done, epochs = len(state["history"]), state["epochs"]
    require(
        done == epochs,
        f"{path} stopped after epoch {done} of {epochs}; continue it with its own command first",
    )
    network = build_network(network_name, dataset.image_shape, dataset.classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainerError(
            f"{path} was trained on images of another shape, this run has {dataset.image_shape}"
        ) from error
    return network, state["history"][-1]["test_accuracy"]
