"""The machine: what it is called, what runs on it, and how fast it copies and multiplies, measured where losses are."""

from __future__ import annotations

import os
import platform
import re
import statistics
from pathlib import Path

import torch

import kdkernels as kd

from .packages import PACKAGES
from .timing import alternate

CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def facts(device: str) -> dict:
    build = kd.build_info()
    versions = {"torch": torch.__version__, "kdkernels": build["version"], "python": platform.python_version()}
    versions |= {package.distribution: package.version() for package in PACKAGES if package.version()}
    return {
        "kind": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": build["cpu_isa"],
        "cache_bytes": cache_bytes(device),
        "memory_kept": "malloc.mmap_max=0" in os.environ.get("GLIBC_TUNABLES", ""),  # docs/benchmarks.md says when
        "versions": versions,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cache_bytes(device: str) -> int:
    """Of the last level; 32 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [re.fullmatch(r"(\d+)([KMG])\s*", path.read_text()) for path in CPU_CACHES.glob("index*/size")]
    return max((int(size[1]) * UNITS[size[2]] for size in sizes if size), default=2**25)


def rates(dtype: torch.dtype, device: str, quick: bool) -> dict[str, float]:
    """Of a copy no cache holds, and of a product of matrices that waits for no memory."""
    length, side = (2**30, 8192) if device == "cuda" else (2**28, 1024)
    if quick:
        length, side = length // 4, side // 2
    source = torch.ones(length // 2 // dtype.itemsize, dtype=dtype, device=device)
    copied = torch.empty_like(source)
    left, right = torch.ones(2, side, side, dtype=dtype, device=device)
    product = torch.empty_like(left)
    calls = {"copy": lambda: copied.copy_(source), "product": lambda: torch.mm(left, right, out=product)}
    copy, multiply = map(statistics.median, alternate(calls, device, seconds=0.5 if quick else 2.0).values())
    return {"bytes_per_second": length / copy, "operations_per_second": 2 * side**3 / multiply}
