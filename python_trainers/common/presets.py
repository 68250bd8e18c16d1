"""Published settings by name: options that ``--preset`` sets and the accuracy reported for them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from python_trainers.common.checks import option, unknown

Options = TypeVar("Options")


@dataclass(frozen=True)
class Preset:
    """One cell of a paper's table."""

    setting: Mapping[str, Any]  # what the figure is of: data set, networks, variant of the method
    recipe: Mapping[str, Any]  # how it is trained
    accuracy: float | None  # published test accuracy in percent; None: nobody published one
    source: str  # paper and table, or whose choice it is

    @property
    def options(self) -> dict[str, Any]:
        """Name and value of every option it sets."""
        return {**self.setting, **self.recipe}

    def applied_to(self, args: Options) -> Options:
        """``args`` with these options."""
        return replace(args, **self.options)

    def describes(self, args: Any) -> bool:
        """Whether a run with ``args`` may be compared with it: data set, networks and variant agree."""
        return all(getattr(args, name) == value for name, value in self.setting.items())


Presets = Mapping[str, Preset]


def find_preset(presets: Presets, name: str) -> Preset:
    """The preset called ``name``; an unknown name is refused, with those that resemble it."""
    if name not in presets:
        raise unknown("--preset", name, presets)
    return presets[name]


def published(presets: Presets, args: Any) -> Preset | None:
    """The preset whose figure a run with ``args`` may be compared with."""
    return next((p for p in presets.values() if p.accuracy is not None and p.describes(args)), None)


def split_preset(argv: Sequence[str]) -> tuple[str | None, bool, list[str]]:
    """Take ``--preset NAME`` and ``--list-presets`` out of a command line: name, whether to list, rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--list-presets", action="store_true")
    found, rest = parser.parse_known_args(argv)
    return found.preset, found.list_presets, rest


def listing(presets: Presets) -> str:
    """Name, options, published accuracy and source of each preset."""
    return "\n".join(
        f"{name}\n"
        f"    {' '.join(_typed(key, value) for key, value in preset.options.items())}\n"
        f"    {'no published figure' if preset.accuracy is None else f'{preset.accuracy:.2f} % published'}; "
        f"{preset.source}"
        for name, preset in presets.items()
    )


def _typed(name: str, value: Any) -> str:
    """An option as it is typed."""
    if isinstance(value, bool):
        return option(name) if value else option(f"no_{name}")
    return f"{option(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
