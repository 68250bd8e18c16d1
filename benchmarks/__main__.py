"""Times a family of losses against eager PyTorch, torch.compile and a copy of the bytes that cannot be avoided.

    python -m benchmarks [FAMILY] [--quick] [--device cpu|cuda] [--dtype float32|bfloat16] [--threads N] [--json PATH]

Prints the machine and a Markdown table; times are medians of forward + backward, ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
from pathlib import Path

import torch

import kdkernels as kd

from .row_losses import contenders
from .timing import alternate, peak_bytes, ratio, spread

FAMILIES = ["softened_kl", "label_loss", "dkpp_loss", "dynamic_temperature_kl"]
SECONDS = 8.0  # per row of the table


def machine(device: str) -> dict:
    facts = kd.build_info()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kdkernels": facts["version"],
        "python": platform.python_version(),
        "instruction_set": facts["cpu_isa"],
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure(family: str, device: str, dtype: torch.dtype, quick: bool) -> list[dict]:
    module = importlib.import_module(f"benchmarks.bench_{family}")
    results = []
    shapes = module.QUICK_SHAPES if quick else module.CUDA_SHAPES if device == "cuda" else module.CPU_SHAPES
    for loss, (ours, eager, tensors_moved) in module.LOSSES.items():
        for rows, classes in shapes:
            torch._dynamo.reset()
            calls = contenders(ours, eager, tensors_moved, rows, classes, dtype, device)
            times = alternate(calls, device, seconds=1.0 if quick else SECONDS)
            gradient = rows * classes * dtype.itemsize
            results.append(
                {
                    "loss": loss,
                    "rows": rows,
                    "classes": classes,
                    "dtype": str(dtype).removeprefix("torch."),
                    "microseconds": {name: statistics.median(of) * 1e6 for name, of in times.items()},
                    "spread": {name: spread(of) for name, of in times.items()},
                    "over_eager": ratio(times, "eager", "kdkernels"),
                    "over_compile": ratio(times, "compile", "kdkernels"),
                    "of_copy_speed": ratio(times, "copy", "kdkernels"),
                    "peak_gradients": {name: peak_bytes(calls[name], device) / gradient for name in ("kdkernels", "eager")},
                }
            )
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


def table(results: list[dict]) -> str:
    lines = [
        "| loss | rows x classes | dtype | kdkernels, us | over eager | over torch.compile | share of copy speed "
        "| peak memory, gradients (eager) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        peak = r["peak_gradients"]
        lines.append(
            f"| `{r['loss']}` | {r['rows']} x {r['classes']} | {r['dtype']} | {r['microseconds']['kdkernels']:.0f} "
            f"± {100 * r['spread']['kdkernels']:.0f} % | {r['over_eager']:.1f}x | {r['over_compile']:.1f}x "
            f"| {100 * r['of_copy_speed']:.0f} % | {peak['kdkernels']:.1f} ({peak['eager']:.1f}) |"
        )
    return "\n".join(lines)


def run(families: list[str], device: str, dtype: torch.dtype, quick: bool) -> dict:
    facts = machine(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    results = [result for family in families for result in measure(family, device, dtype, quick)]
    print(table(results))
    return {"machine": facts, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("family", nargs="?", choices=FAMILIES, help="one of them (default: all)")
    parser.add_argument("--quick", action="store_true", help="small shapes, a second each")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers there")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    families = [options.family] if options.family else FAMILIES
    report = run(families, options.device, getattr(torch, options.dtype), options.quick)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
