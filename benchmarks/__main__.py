"""Times losses against eager PyTorch, torch.compile, the packages that answer them, and the work that cannot be avoided.

    python -m benchmarks [FAMILY ...] [--quick] [--device cpu|cuda] [--dtype DTYPE ...] [--threads N] [--json PATH]
    python -m benchmarks --headline [--threads N] [--json PATH]

Prints the machine and Markdown tables; `python -m benchmarks.report` makes tables and plots of what --json wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kdkernels._files import write_atomically

from . import harness, headline, machine, scaling, tables
from .families import FAMILIES, losses
from .problem import Shape

DTYPES = ("float32", "bfloat16", "float16")
Plan = dict[torch.dtype, Sequence[str]]  # the families that are measured in it


def run(
    plan: Plan,
    device: str,
    quick: bool,
    sweeps: bool = True,
    until: float = math.inf,
    path: Path | None = None,
    only: dict[str, Shape] | None = None,
) -> dict:
    """All numbers, or those of `only` these losses at these shapes. Where a path is given they are written there after each
    family, so that an interruption loses one family at most."""
    effort = harness.Effort.of(device, quick)._replace(until=until)
    document = {"machine": machine.facts(device), "rates": {}, "results": [], "scaling": []}
    for dtype, families in plan.items():
        document["rates"][str(dtype).removeprefix("torch.")] = machine.rates(dtype, device, quick)
        for family in families:
            document["results"] += measure(family, device, dtype, quick, effort, only)
            write(document, path)
    if sweeps:
        document["scaling"] = scaling.measure(device, next(iter(plan)), quick, until)
        write(document, path)
    print(file=sys.stderr)
    return document


def measure(
    family: str,
    device: str,
    dtype: torch.dtype,
    quick: bool,
    effort: harness.Effort,
    only: dict[str, Shape] | None = None,
) -> list[dict]:
    results = []
    for loss in losses(family).values():
        shapes = list(loss.shapes["quick" if quick else device])
        if only is not None:
            shapes = [shape for shape in shapes if shape == only.get(loss.name)]
        for shape in shapes:
            # On a GPU, compiling all shapes would take longer than all the rest: the first is small, the last large.
            compiled = device == "cpu" or shape in (shapes[0], shapes[-1])
            result = harness.attempt(loss, shape, dtype, device, effort._replace(compiled=compiled))
            if loss.resident and device == "cpu" and not quick and result["contenders"]:
                for side, found in harness.resident_memory(loss, family, shape, dtype).items():
                    result["contenders"].setdefault(side, {}).update(found)
            results.append({"family": family, **result})
            print(".", end="", flush=True, file=sys.stderr)
        for shape in loss.memory_only if device == "cpu" and not quick and only is None else ():
            found = {"contenders": harness.resident_memory(loss, family, shape, dtype)}
            results.append({"family": family, **harness.heading(loss, shape, dtype), **found})
    return results


def write(document: dict, path: Path | None) -> None:
    if path:
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def failed(document: dict) -> bool:
    """Whether ours could not be measured somewhere."""
    return any("kdkernels" in result.get("absent", {}) for result in document["results"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("family", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)} (default: all, and scaling)")
    parser.add_argument("--quick", action="store_true", help="small shapes, a second each")
    parser.add_argument("--headline", action="store_true", help="the eight rows of the README alone, float32, on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers there")
    options = parser.parse_args()
    if unknown := set(options.family) - set(FAMILIES):
        parser.error(f"no family {', '.join(sorted(unknown))}: choose from {', '.join(FAMILIES)}")
    if options.headline and (options.family or options.quick or options.device != "cpu" or options.dtype != ["float32"]):
        parser.error("--headline takes no family, --quick, --device or --dtype: the rows are in benchmarks/headline.py")
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = dict.fromkeys((getattr(torch, name) for name in options.dtype), options.family or FAMILIES)
    only = headline.ROWS if options.headline else None
    sweeps = not options.family and only is None
    document = run(plan, options.device, options.quick, sweeps, path=options.json, only=only)
    print(tables.summary(document))
    if failed(document):
        sys.exit(1)


if __name__ == "__main__":
    main()
