"""Memory of a call beyond its inputs: what torch allocates, and what the operating system counts.

A library may allocate what no profiler of torch sees. The operating system counts per process: one step on a CPU is run in a
process of its own, benchmarks/one_step.py. Linux only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .timing import Call


def peak_bytes(call: Call, device: str) -> int:
    """Largest sum of tensors alive at once beyond those alive before the call, which has to leave none behind: the
    profiler of the CPU learns that memory is given back only where it has seen it taken."""
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def resident_bytes(family: str, loss: str, side: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """By how much the largest resident size grows in one step on the CPU, gradients included."""
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-m", "benchmarks.one_step", family, loss, side, name, *map(str, shape)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def largest() -> int:
    """Bytes that this process has occupied at most. Not ru_maxrss, which on Linux a process takes over from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) * 1024
