"""A trainer in a process of its own that dies on command."""

import importlib
import os
import signal
import sys
from pathlib import Path

import torch
from forks import FORKS

from python_trainers.common.data import Batches
from python_trainers.common.run import Run


def interrupt(
    trainer: str, options: list[str], run: Path, log: Path, *, after: int = 1, kill: signal.Signals = signal.SIGKILL
) -> tuple[int, str]:
    """``main(options)`` of a trainer, stopped within the epoch of ``run`` that follows epoch ``after``; gives the exit code,
    minus the signal where that ended it, and what it wrote to stderr, which goes through the file ``log``."""
    process = FORKS.Process(target=_train, args=(trainer, options, run, log, after, kill))
    process.start()
    process.join(timeout=300)
    return process.exitcode, log.read_text()


def _train(trainer: str, options: list[str], run: Path, log: Path, after: int, kill: signal.Signals) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    with open(os.devnull, "wb") as file:
        os.dup2(file.fileno(), 1)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    _die_within_an_epoch(run, after + 1, kill)
    sys.exit(importlib.import_module(f"python_trainers.{trainer}").main(options))


def _die_within_an_epoch(run: Path, fatal: int, kill: signal.Signals) -> None:
    epochs, batches, within = Run.remaining_epochs, Batches.__iter__, []

    def remaining_epochs(self, *arguments, **options):
        for epoch in epochs(self, *arguments, **options):
            within[:] = [self.folder == run and epoch == fatal]
            yield epoch

    def iterate(self):
        for number, batch in enumerate(batches(self)):
            if within == [True] and number == 2:
                os.kill(os.getpid(), kill)
            yield batch

    Run.remaining_epochs, Batches.__iter__ = remaining_epochs, iterate
