"""Times losses against eager PyTorch, torch.compile, the packages that answer them, and the work that cannot be avoided.

    python -m benchmarks [FAMILY ...] [--quick] [--device cpu|cuda] [--dtype DTYPE ...] [--threads N] [--json PATH]

Prints the machine and Markdown tables; `python -m benchmarks.report` makes tables and plots of what --json wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from . import harness, machine, report, scaling
from .families import FAMILIES, losses

DTYPES = ("float32", "bfloat16", "float16")


def run(families: list[str], device: str, dtypes: list[torch.dtype], quick: bool, sweeps: bool = True) -> dict:
    document = {"machine": machine.facts(device), "rates": {}, "results": [], "scaling": []}
    for dtype in dtypes:
        document["rates"][str(dtype).removeprefix("torch.")] = machine.rates(dtype, device, quick)
        for family in families:
            document["results"] += measure(family, device, dtype, quick)
    if sweeps:
        document["scaling"] = scaling.measure(device, dtypes[0], quick)
    print(file=sys.stderr)
    return document


def measure(family: str, device: str, dtype: torch.dtype, quick: bool) -> list[dict]:
    results, effort = [], harness.Effort.of(device, quick)
    for loss in losses(family).values():
        for shape in loss.shapes["quick" if quick else device]:
            result = {"family": family, **harness.measure(loss, shape, dtype, device, effort)}
            if loss.resident and device == "cpu" and not quick:
                for side, found in harness.weigh(loss, family, shape, dtype).items():
                    result["contenders"][side] |= found
            results.append(result)
            print(".", end="", flush=True, file=sys.stderr)
        for shape in loss.weighed if device == "cpu" and not quick else ():
            weighed = {"contenders": harness.weigh(loss, family, shape, dtype)}
            results.append({"family": family, **harness.heading(loss, shape, dtype), **weighed})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("family", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)} (default: all, and scaling)")
    parser.add_argument("--quick", action="store_true", help="small shapes, a second each")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers there")
    options = parser.parse_args()
    if unknown := set(options.family) - set(FAMILIES):
        parser.error(f"no family {', '.join(sorted(unknown))}: choose from {', '.join(FAMILIES)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    dtypes = [getattr(torch, name) for name in options.dtype]
    document = run(options.family or FAMILIES, options.device, dtypes, options.quick, sweeps=not options.family)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(report.summary(document))


if __name__ == "__main__":
    main()
