"""Published settings by name: options that ``--preset`` sets and the figure reported for them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from python_trainers.common.checks import option, unknown
from python_trainers.common.options import MachineOptions
from python_trainers.common.teacher import TeacherOptions

Options = TypeVar("Options")

# Options that change no figure but for its spread and rounding: places, the seed, the use of the machine, and for
# all images, --epoch-of. Of a --teacher the table shows the accuracy.
INDIFFERENT = {
    *("out", "seed", "data_root", "download", "teacher", "export", "log_with", "epoch_of"),
    *(field.name for field in fields(MachineOptions)),
}
OF_TEACHER = {field.name for field in fields(TeacherOptions) if field.name.startswith("teacher_")}


@dataclass(frozen=True)
class Preset:
    """One cell of a paper's table."""

    options: Mapping[str, Any]  # data set, networks, variant of the method, recipe
    accuracy: float | None  # published, in percent; None: nobody published one
    source: str  # paper and table, or whose choice it is
    quantity: str = "test_accuracy"  # what the accuracy is of: the name of the same figure of a run

    def applied_to(self, args: Options) -> Options:
        """``args`` with these options."""
        return replace(args, **self.options)

    def is_of(self, args: Any) -> bool:
        """Whether a run with ``args`` is one of this setting: all options that change its figure agree.

        Those that the preset leaves alone have their defaults, so the run sees all images under their labels.
        Options of the teacher do not matter where the preset has none.
        """
        mine, given = (_decisive(a.completed()) for a in (self.applied_to(type(args)()), args))
        ignored = () if "teacher_model" in self.options else OF_TEACHER
        return all(mine[name] == given[name] for name in mine if name not in ignored)


Presets = Mapping[str, Preset]


def _decisive(args: Any) -> dict[str, Any]:
    """The options that change a figure; what a teacher does not have of its own is the student's."""
    values = {field.name: getattr(args, field.name) for field in fields(args) if field.name not in INDIFFERENT}
    for name in OF_TEACHER & values.keys():
        if values[name] is None:
            values[name] = values[name.removeprefix("teacher_")]
    if values["train_fraction"] == 1:
        values["train_fraction"] = None
    return values


def find_preset(presets: Presets, name: str) -> Preset:
    """The preset called ``name``; an unknown name is refused, with those that resemble it."""
    if name not in presets:
        raise unknown("--preset", name, presets)
    return presets[name]


def published(presets: Presets, args: Any) -> Preset | None:
    """The preset whose figure may stand beside that of a run with ``args``, see :meth:`Preset.is_of`.

    Its ``quantity`` names the figure of the run's summary that it may stand beside.
    """
    return next((p for p in presets.values() if p.accuracy is not None and p.is_of(args)), None)


def split_preset(argv: Sequence[str]) -> tuple[str | None, bool, list[str]]:
    """Take ``--preset NAME`` and ``--list-presets`` out of a command line: name, whether to list, rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--list-presets", action="store_true")
    found, rest = parser.parse_known_args(argv)
    return found.preset, found.list_presets, rest


def listing(presets: Presets) -> str:
    """Name, options, published figure and source of each preset."""
    return "\n".join(
        f"{name}\n"
        f"    {' '.join(_typed(key, value) for key, value in preset.options.items())}\n"
        f"    {_figure(preset)}; {preset.source}"
        for name, preset in presets.items()
    )


def _figure(preset: Preset) -> str:
    """What is published, in words."""
    if preset.accuracy is None:
        return "no published figure"
    return f"{preset.quantity} {preset.accuracy:.2f} % published"


def _typed(name: str, value: Any) -> str:
    """An option as it is typed."""
    if isinstance(value, bool):
        return option(name) if value else option(f"no_{name}")
    return f"{option(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
