"""What a run shows while it trains: in a terminal a bar that moves with the steps, else a line per epoch."""

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from torch import nn
from tqdm import tqdm

from python_trainers.common.metrics import Means
from python_trainers.common.run import Run

REFRESH = 1.0  # seconds between two readings of the loss, each of which waits for the device


def announce(run: Run, model: nn.Module, *, images: int, steps: int) -> None:
    """One line before training, on stdout: ``images`` to learn from, ``steps`` of an epoch."""
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    processes = run.accelerator.num_processes
    run.accelerator.print(
        f"{run.folder}: {run.network}, {weights:,} weights in training, {images:,} images, {steps:,} steps per "
        f"epoch, {run.epochs} epochs, on {run.accelerator.device}"
        + (f", {processes} processes" if processes > 1 else "")
    )


class Progress:
    """Shown by the main process alone, on stderr."""

    def __init__(self, run: Run, *, batches: int, images: int) -> None:
        """``batches`` of an epoch, with so many ``images`` each in all processes."""
        self._title, self._epochs, self._images = str(run.folder), run.epochs, images
        self._images_per_epoch = batches * images
        self._shown = run.accelerator.is_main_process
        self._in_terminal = self._shown and sys.stderr.isatty()
        self._first = len(run.history)
        self._bar = tqdm(
            desc=self._title,
            total=run.epochs * self._images_per_epoch,
            initial=self._first * self._images_per_epoch,
            unit=" images",
            unit_scale=True,
            disable=not self._in_terminal,
            ncols=columns() if self._in_terminal else None,
            nrows=20,  # tqdm's own default; a terminal that does not know its size says 0, and nothing is shown
        )
        self._figures: dict[str, str] = {}  # of the last epoch
        self._begun = self._read = time.monotonic()

    def step(self, means: Means) -> None:
        """A batch was learned from; ``means`` are those of the epoch so far."""
        if not self._in_terminal:
            return
        if time.monotonic() - self._read > REFRESH:
            self._bar.set_postfix(self._figures | {"loss": f"{means.local('loss'):.4g}"}, refresh=False)
            self._read = time.monotonic()
        self._bar.update(self._images)

    def epoch(self, entry: dict[str, float], *, shown: Sequence[str]) -> None:
        """An epoch was measured and saved: its figures, of which some are ``shown``."""
        self._figures = {name: f"{entry[name]:.4g}" for name in shown}
        if self._in_terminal:
            self._bar.set_postfix(self._figures)
        elif self._shown:
            epoch = int(entry["epoch"])
            seconds = (time.monotonic() - self._begun) / (epoch - self._first)
            text = ", ".join(f"{name} {value}" for name, value in self._figures.items())
            left = tqdm.format_interval(seconds * (self._epochs - epoch))
            rate = self._images_per_epoch / seconds
            line = f"{self._title}: epoch {epoch} of {self._epochs}, {text}; {rate:,.0f} images/s, {left} left"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def columns() -> int:
    """Width of the terminal; 80 of one that does not know it, such as a container's, where tqdm would show nothing."""
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80
