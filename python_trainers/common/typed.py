"""A value from its text, by the type of a field: what ``OPTION=VALUE`` of a job means."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from python_trainers.common.errors import TrainerError

KINDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def read_value(text: str, hint: Any) -> Any:
    """``text`` as a value of the type ``hint``; raises ValueError if it is none.

    Types: int, float, str, Path, Literal, X | None (``None``) and tuple[X, ...] (values joined by ``+``).
    """
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if text == "None" else read_value(text, inner)
    if kind is Literal:
        values = {str(value): value for value in arguments}
        if text not in values:
            raise ValueError(text)
        return values[text]
    if kind is tuple:
        return tuple(read_value(part, arguments[0]) for part in text.split("+"))
    if hint not in KINDS:
        raise TrainerError(f"values of the type {hint} cannot be given in a job")
    return hint(text)


def describe(hint: Any) -> str:
    """What ``hint`` takes, for people."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join("None" if argument is type(None) else describe(argument) for argument in arguments)
    if kind is Literal:
        return ", ".join(map(str, arguments))
    if kind is tuple:
        return f"{describe(arguments[0])}, or several joined by +"
    return KINDS.get(hint, str(hint))
