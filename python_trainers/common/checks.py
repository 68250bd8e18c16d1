"""Rules that options obey, each refused in one sentence that names the option as it is typed."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from python_trainers.common.errors import TrainerError, require
from python_trainers.common.names import listing


def option(name: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + name.replace("_", "-")


def select(options: Any, *names: str) -> dict[str, Any]:
    """Name and value of the named options."""
    return {name: getattr(options, name) for name in names}


def require_positive(options: Any, *names: str) -> None:
    """Each named option must be > 0 and finite."""
    for name in names:
        value = getattr(options, name)
        require(0 < value < float("inf"), f"{option(name)} must be > 0 and finite, got {value}")


def require_not_negative(options: Any, *names: str) -> None:
    """Each named option must be >= 0 and finite."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value < float("inf"), f"{option(name)} must be >= 0 and finite, got {value}")


def require_share(options: Any, *names: str) -> None:
    """Each named option must be in [0, 1]."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value <= 1, f"{option(name)} must be between 0 and 1, got {value}")


def require_at_least(options: Any, least: int, *names: str) -> None:
    """Each named option must be >= ``least``."""
    for name in names:
        value = getattr(options, name)
        require(value >= least, f"{option(name)} must be >= {least}, got {value}")


def require_default(options: Any, why: str, *names: str) -> None:
    """Each named option, where ``options`` have it, must be as nobody set it: ``why`` nothing would come of it."""
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in names:
            require(value == field.default, f"{option(field.name)} {value} is of no use: {why}; leave it out")


def require_milestones(options: Any, *names: str) -> None:
    """Each named option must be epochs >= 1, each later than the one before."""
    for name in names:
        epochs = getattr(options, name)
        rising = all(a < b for a, b in zip((0, *epochs), epochs, strict=False))
        got = " ".join(map(str, epochs))
        require(rising, f"{option(name)} must be rising epochs >= 1, got {got}")


def unknown(kind: str, name: str, known: Iterable[str], limit: int = 10) -> TrainerError:
    """The error for a name that is not among ``known``: those that resemble it first, ``limit`` at most."""
    return TrainerError(f"unknown {kind} {name!r}; there is: {listing(name, known, limit)}")
