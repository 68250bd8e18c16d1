"""Memory of one step as the operating system counts it, in a process of its own: a library may allocate what no
profiler of torch sees. Linux only.

    python -m benchmarks.resident MODULE LOSS kdkernels|eager DTYPE SIZE...
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import torch


def growth(module: str, loss: str, side: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes by which the largest resident size grows in one step on the CPU, gradients included."""
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-m", "benchmarks.resident", module, loss, side, name, *map(str, shape)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def largest() -> int:
    """Bytes that this process has occupied at most. Not ru_maxrss, which on Linux a process takes over from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def main() -> None:
    from .similarities import step

    module, loss, side, dtype, *sizes = sys.argv[1:]
    ours, eager, _ = importlib.import_module(module).LOSSES[loss]
    function = ours if side == "kdkernels" else eager
    step(function, 8, 8, 8, getattr(torch, dtype), "cpu")()  # starts threads, loads what is needed
    call = step(function, *map(int, sizes), getattr(torch, dtype), "cpu")
    before = largest()
    call()
    print(largest() - before)


if __name__ == "__main__":
    main()
