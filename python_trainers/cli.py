"""The console command ``kd-train METHOD ...``: the same as ``python -m python_trainers.METHOD ...``."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

NOT_METHODS = {"__init__", "cli", "demo"}


def methods() -> dict[str, str]:
    """Name and first docstring line of every trainer, read from its source: a list must not import torch."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if path.stem not in NOT_METHODS
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer named first, or list them all; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    found = methods()
    if name in found:
        return importlib.import_module(f"python_trainers.{name}").main(rest)
    listing = "\n".join(f"  {method:<28}{line}" for method, line in found.items())
    usage = f"kd-train METHOD [options]; kd-train METHOD --help lists the options. Methods:\n{listing}"
    if name in ("", "-h", "--help"):
        print(usage)
        return 0
    print(f"kd-train: unknown method {name!r}\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
