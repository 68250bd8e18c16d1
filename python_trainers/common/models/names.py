"""Names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def listing(name: str, known: Iterable[str]) -> str:
    """The known names, those that resemble ``name`` first."""
    known = list(known)
    near = get_close_matches(name.lower().replace("-", "_"), known, n=5)  # papers write WRN-40-2
    return ", ".join([*near, *(other for other in known if other not in near)])
