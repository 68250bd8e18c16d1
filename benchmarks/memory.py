"""Memory of a call beyond its inputs: what torch allocates, and what the operating system counts.

    python -m benchmarks.memory FAMILY LOSS kdkernels|eager DTYPE SIZE...

prints the latter, of one step on a CPU in a process of its own: a library may allocate what no profiler of torch sees. Linux
only.
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
    command = [sys.executable, "-m", "benchmarks.memory", family, loss, side, name, *map(str, shape)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def largest() -> int:
    """Bytes that this process has occupied at most. Not ru_maxrss, which on Linux a process takes over from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def main() -> None:
    from .families import losses
    from .harness import draw, step

    family, name, side, dtype, *sizes = sys.argv[1:]
    loss = losses(family)[name]
    function = loss.ours if side == "kdkernels" else loss.eager

    def drawn(*shape: int):
        return step(function, [draw(loss, shape, getattr(torch, dtype), "cpu")])

    drawn(*(8 for _ in sizes))()  # starts threads, loads what is needed
    call = drawn(*map(int, sizes))
    before = largest()
    call()
    print(largest() - before)


if __name__ == "__main__":
    main()
