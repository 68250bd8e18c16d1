"""Names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches

from torch import nn


def listing(name: str, known: Iterable[str], limit: int = 100) -> str:
    """The known names, those that resemble ``name`` first; ``limit`` of them at most."""
    known = list(known)
    near = get_close_matches(name.lower().replace("-", "_"), known, n=5)  # papers write WRN-40-2
    ordered = [*near, *(other for other in known if other not in near)]
    more = [f"and {len(ordered) - limit} more"] if len(ordered) > limit else []
    return ", ".join([*ordered[:limit], *more])


def kind(module: nn.Module) -> str:
    """Its class, or that of the module inside a wrapper."""
    return type(getattr(module, "module", module)).__name__
