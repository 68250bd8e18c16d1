"""Times a family of losses against eager PyTorch, torch.compile and the work that cannot be avoided.

    python -m benchmarks [FAMILY] [--quick] [--device cpu|cuda] [--dtype float32|bfloat16] [--threads N] [--json PATH]

Prints the machine and Markdown tables; times are medians of forward + backward, ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from pathlib import Path

import torch

import kdkernels as kd

from . import bench_memory_bank, bench_peer_ensemble, row_losses, similarities

# What measures a family, and makes one table of all such.
FAMILIES = {
    "softened_kl": row_losses,
    "label_loss": row_losses,
    "dkpp_loss": row_losses,
    "dynamic_temperature_kl": row_losses,
    "similarity": similarities,
    "memory_bank": bench_memory_bank,
    "peer_ensemble": bench_peer_ensemble,
}


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


def run(families: list[str], device: str, dtype: torch.dtype, quick: bool) -> dict:
    facts = machine(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    results = []
    for kind in dict.fromkeys(FAMILIES[family] for family in families):
        alike = [importlib.import_module(f"benchmarks.bench_{name}") for name in families if FAMILIES[name] is kind]
        found = [result for module in alike for result in kind.measure(module, device, dtype, quick)]
        print(kind.table(found))
        results += found
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
    families = [options.family] if options.family else list(FAMILIES)
    report = run(families, options.device, getattr(torch, options.dtype), options.quick)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
