"""Everything that needs a GPU, in one command: `make gpu-check`.

Runs the test suite with CUDA tensors, a small set of problems under compute-sanitizer (memcheck and racecheck), counts the
kernels that small losses launch, and runs the benchmarks: all families in bfloat16, some in float32 as well. Writes
benchmarks/results/<gpu>.json and prints the tables; exits with 1 if anything failed. Needs torch, pytest and hypothesis, no
network.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import kdkernels as kd

from . import __main__ as benchmarks
from . import harness, report
from .families import FAMILIES, losses

RESULTS = Path(__file__).parent / "results"
SANITIZERS = ("memcheck", "racecheck")
IN_FLOAT32 = ("softened_kl", "similarity")  # the two whose kernels depend on the dtype most: one copies, one multiplies
# Of these families at these small shapes, a step may launch harness.LAUNCHES kernels, and no more.
FEW_LAUNCHES = {"softened_kl": (1024, 100), "peer_ensemble": (128, 3, 100, 8)}


def step(name: str, command: list[str]) -> dict:
    """Runs a command; its last line of output, status and seconds."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = run.stdout.strip().splitlines() or [""]
    print("\n".join(lines[-1:] if run.returncode == 0 else lines[-60:]), flush=True)
    return {"passed": run.returncode == 0, "summary": lines[-1], "seconds": round(time.monotonic() - start, 1)}


def kernels(call: Callable[[], object]) -> int:
    """Launched by the second call."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in record.events())


def launches() -> dict:
    """Forward and backward, whatever the upstream gradient."""
    start, found = time.monotonic(), {}
    upstream = torch.tensor(3.0, device="cuda")
    small = [(name, loss, shape) for family, shape in FEW_LAUNCHES.items() for name, loss in losses(family).items()]
    for name, loss, shape in small:
        batch, leaves = harness.draw(loss, shape, torch.bfloat16, "cuda")
        waiting = [loss.ours(batch), loss.ours(batch)]  # one for each call: a second backward computes its gradients anew
        found[name] = (
            kernels(lambda: loss.ours(batch)),
            kernels(lambda: torch.autograd.grad(waiting.pop(), leaves, upstream)),
        )
    summary = ", ".join(f"{name} {forward} + {backward}" for name, (forward, backward) in found.items())
    print(f"== kernels launched, forward + backward: {summary}", flush=True)
    passed = all(0 < forward and forward + backward <= harness.LAUNCHES for forward, backward in found.values())
    return {"passed": passed, "summary": summary, "seconds": round(time.monotonic() - start, 1)}


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no GPU here; `make test` checks everything that needs none", file=sys.stderr)
        return 2
    if reason := kd.build_info()["why_not"].get("cuda"):
        print(f"gpu_check: the CUDA library is not loaded: {reason}", file=sys.stderr)
        return 2

    steps = {"tests": step("tests on CUDA", [sys.executable, "-m", "pytest", "-q", "tests", "-k", "cuda"])}
    if tool := shutil.which("compute-sanitizer"):
        for check in SANITIZERS:
            command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, "-m", "benchmarks.sanitized"]
            steps[check] = step(check, command)
    else:
        print("== compute-sanitizer is not on PATH: skipped", flush=True)
    steps["launches"] = launches()

    document = benchmarks.run(FAMILIES, "cuda", [torch.bfloat16], quick=False)
    more = benchmarks.run(IN_FLOAT32, "cuda", [torch.float32], quick=False, sweeps=False)
    document["rates"] |= more["rates"]
    document["results"] += more["results"]
    print(report.summary(document))
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document | {"steps": steps, "build": kd.build_info()}, indent=1) + "\n")
    print(f"wrote {path}")
    return 0 if all(s["passed"] for s in steps.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
