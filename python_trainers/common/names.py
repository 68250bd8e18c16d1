"""Names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def listing(name: str, known: Iterable[str], limit: int = 100) -> str:
    """The known names, those that resemble ``name`` first; ``limit`` of them at most."""
    known = list(known)
    spelled = {_plain(other): other for other in known}
    near = [spelled[other] for other in get_close_matches(_plain(name), spelled, n=5)]
    ordered = [*near, *(other for other in known if other not in near)]
    more = [f"and {len(ordered) - limit} more"] if len(ordered) > limit else []
    return ", ".join([*ordered[:limit], *more])


def _plain(name: str) -> str:
    """Papers write WRN-40-2."""
    return name.lower().replace("-", "_")
