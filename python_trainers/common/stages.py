"""Stages: what is trained once in a folder and loaded from then on.

Teachers, heads, generations and students are stages. A stage that makes something else, such as pseudo
labels, writes it in ``train`` and reads it afterwards.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint
from python_trainers.common.run import Run


def stage(
    run: Run,
    modules: Mapping[str, nn.Module],  # by their names in the checkpoint
    train: Callable[[], dict[str, Any]],  # trains them; returns what the summary gets beside the last figures
) -> dict[str, Any]:
    """The summary of ``run``. The ``modules`` are as it left them: loaded if it is finished, else trained."""
    if run.is_finished:
        run.restore(**modules)
        run.accelerator.print(f"{run.folder} is finished ({run.epochs} epochs); to train again, give another --out")
        return run.summary
    return run.finish(**train())


def numbered_folder(base: Path, configuration: Mapping[str, Any]) -> Path:
    """Which of the folders BASE-1, BASE-2, ... holds the run of that ``configuration``; else the first free one."""
    for number in itertools.count(1):
        folder = base.with_name(f"{base.name}-{number}")
        if not checkpoint_path(folder).exists():
            return folder
        if load_checkpoint(checkpoint_path(folder))["configuration"].items() >= configuration.items():
            return folder
