"""Counts the instructions of the CPU kernels under callgrind and compares them with a budget: on a shared machine times are
noise, and a count is the same in every run.

    python -m benchmarks.instructions            exits with 1 where a kernel takes over 10 % more than the budget has
    python -m benchmarks.instructions --strict   also where nothing can be counted
    python -m benchmarks.instructions --write    writes the budget anew

One problem per kernel (host_problems.py), on AVX2, since valgrind knows no AVX-512. What Python, NumPy and libc execute is
left out. Another compiler makes other code of the same sources: the budget names the one it was made with, and under
another the figures are shown and none is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from . import host_problems

BUDGET = Path(__file__).with_name("instruction_budget.json")
INSTRUCTION_SET = "avx2"
SLACK = 0.1


def instructions_in(library: str, profile: Path) -> int:
    """That a part of callgrind's output attributes to the library itself."""
    count, inside, inclusive = 0, False, False
    for line in profile.read_text().splitlines():
        if line.startswith("ob="):
            inside = line == f"ob={library}"
        elif line.startswith("calls="):
            inclusive = True  # the next line costs what the callee does
        elif line[:1].isdigit():
            count += int(line.split()[1]) if inside and not inclusive else 0
            inclusive = False
    return count


def count(library: str) -> dict[str, int]:
    """Instructions of each problem."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile")
        command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={profile}", "--dump-before=getppid"]
        command += ["--compress-strings=no", "--compress-pos=no"]  # names and lines in full
        command += [sys.executable, host_problems.__file__, library, INSTRUCTION_SET]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        # Part 1 is the start of Python.
        parts = enumerate(run.stdout.splitlines(), 2)
        counted = {name: instructions_in(library, Path(f"{profile}.{part}")) for part, name in parts}
    if unseen := [name for name, instructions in counted.items() if not instructions]:
        raise RuntimeError(f"callgrind saw nothing of {library} in: {', '.join(unseen)}")
    return counted


def compare(budget: dict, compiler: str, counted: dict[str, int]) -> bool:
    """Prints the figures side by side; False where one is over the budget of the same compiler, or has none."""
    width = max(map(len, counted))
    over, under = [], []
    for name, instructions in counted.items():
        allowed = budget["instructions"].get(name)
        change = f"{100 * (instructions / allowed - 1):+6.1f} %" if allowed else "not in the budget"
        print(f"{name:{width}} {instructions:12,} {change}")
        if not allowed or instructions > (1 + SLACK) * allowed:
            over.append(name)
        elif instructions < (1 - SLACK) * allowed:
            under.append(name)
    if compiler != budget["compiler"]:
        print(f"the budget is of {budget['compiler']}, this library of {compiler}: nothing is refused")
        return True
    if over:
        print(f"over the budget by more than {SLACK:.0%}: {'; '.join(over)}")
        print("if that is the price of something: python -m benchmarks.instructions --write")
    if under:  # a budget that is too large would let the gain be lost again
        print(f"under the budget by more than {SLACK:.0%}: {'; '.join(under)}")
        print("to keep it so: python -m benchmarks.instructions --write")
    return not over


def host_library() -> str:
    """The file of kdkernels._host, of a checkout or installed, as callgrind calls it; the package is not imported."""
    found = PathFinder.find_spec("_host", find_spec("kdkernels").submodule_search_locations)
    if not found:
        sys.exit("kdkernels._host is not built: make build")
    return os.path.realpath(found.origin)


def why_not(host: ModuleType) -> str:
    """Instructions cannot be counted here; nothing where they can."""
    if not shutil.which("valgrind"):
        return "no valgrind on PATH"
    return "" if INSTRUCTION_SET in host.available_isas() else f"this processor has no {INSTRUCTION_SET}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {BUDGET.name} instead of comparing with it")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where nothing can be counted")
    options = parser.parse_args()
    library = host_library()
    host = host_problems.load(library)
    if missing := why_not(host):
        print(f"skipped: {missing}")
        sys.exit(options.strict)
    compiler, counted = host.build_facts()["compiler"], count(library)
    if options.write:
        budget = {"compiler": compiler, "instruction_set": INSTRUCTION_SET, "instructions": counted}
        BUDGET.write_text(json.dumps(budget, indent=1) + "\n")
    elif not compare(json.loads(BUDGET.read_text()), compiler, counted):
        sys.exit(1)


if __name__ == "__main__":
    main()
