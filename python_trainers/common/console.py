"""From the command line to a trainer, and from its failures to one sentence."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from python_trainers.common.errors import TrainerError

Options = TypeVar("Options")


def run_from_console(
    name: str,
    options: type[Options],
    train: Callable[[Options], Any],
    argv: Sequence[str] | None,
    description: str,
) -> int:
    """Parse ``argv`` (None: the process's own) into ``options``, call ``train``; returns the exit code."""
    args = tyro.cli(options, prog=name, args=argv, description=description)
    try:
        train(args)
    except TrainerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; all finished epochs are saved, the same command continues from there",
            file=sys.stderr,
        )
        return 130  # what shells report for Ctrl-C
    return 0
