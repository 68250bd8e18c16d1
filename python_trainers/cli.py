"""The console command ``kd-train METHOD ...``: the same as ``python -m python_trainers.METHOD ...``."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

TOOLS = ("compare", "demo")  # run methods, are none


def commands() -> dict[str, str]:
    """Name and first docstring line of trainers and tools, from the source: a list must not import torch."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if path.stem not in ("__init__", "cli")
    }


def methods() -> list[str]:
    """Names of the trainers."""
    return [name for name in commands() if name not in TOOLS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer or tool named first, or list them all; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    found = commands()
    if name in found:
        return importlib.import_module(f"python_trainers.{name}").main(rest)
    lines = {command: f"  {command:<28}{line}" for command, line in found.items()}
    usage = "\n".join(
        [
            "kd-train METHOD [options]; kd-train METHOD --help lists the options. Methods:",
            *(lines[method] for method in found if method not in TOOLS),
            "Several methods at once:",
            *(lines[tool] for tool in TOOLS),
        ]
    )
    if name in ("", "-h", "--help"):
        print(usage)
        return 0
    print(f"kd-train: unknown method {name!r}\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
