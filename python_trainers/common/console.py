"""From the command line to a trainer, and from its failures to one sentence."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from python_trainers.common.evaluation import evaluate
from python_trainers.common.errors import TrainerError
from python_trainers.common.presets import Presets, find_preset, listing, split_preset

Options = TypeVar("Options")


def run_from_console(
    name: str,
    options: type[Options],
    train: Callable[[Options], Any],
    argv: Sequence[str] | None,
    description: str,
    presets: Presets | None = None,
) -> int:
    """Parse ``argv`` (None: the process's own) into ``options``, call ``train``; returns the exit code.

    With ``presets``, ``--preset NAME`` sets many options at once, ``--list-presets`` prints them all; an
    option that is also given by itself wins.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        defaults = options()
        if presets is not None:
            chosen, wants_list, argv = split_preset(argv)
            description += " --preset NAME starts from a published setting, --list-presets shows them."
            if wants_list:
                print(listing(presets), flush=True)
                return 0
            if chosen is not None:
                defaults = find_preset(presets, chosen).applied_to(defaults)
        args = tyro.cli(options, prog=name, args=argv, description=description, default=defaults)
        if getattr(args, "evaluate", None) is not None:
            evaluate(args)
        else:
            train(args)
    except TrainerError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads, as head does, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 1
    except KeyboardInterrupt:
        print(
            f"\n{name}: interrupted; all finished epochs are saved, the same command continues from there",
            file=sys.stderr,
        )
        return 130  # what shells report for Ctrl-C
    return 0
