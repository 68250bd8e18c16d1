"""Everything that needs a GPU, in one command: `make gpu-check`.

Runs the test suite with CUDA tensors, a small set of problems under compute-sanitizer (memcheck and racecheck), counts the
kernels that small losses launch, and runs the benchmarks: all families in bfloat16, some in float32 as well. Writes
benchmarks/results/<gpu>.json after each family, so that what was measured outlives what comes after it, and prints the
tables and the targets; exits with 1 if anything failed. Takes ten minutes at most: what has not begun by then is named.
Needs torch, pytest and hypothesis, no network.
"""

from __future__ import annotations

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
from . import harness, tables, targets
from .families import FAMILIES, losses
from .problem import Loss, Shape

RESULTS = Path(__file__).parent / "results"
SANITIZERS = ("memcheck", "racecheck")
PLAN = {  # what depends on the dtype most, in float32 as well: one family copies, one multiplies
    torch.bfloat16: FAMILIES,
    torch.float32: ("softened_kl", "similarity"),
}
# Of these families at these small shapes, a step may launch harness.LAUNCHES kernels, and no more.
FEW_LAUNCHES = {"softened_kl": ((128, 100), (1024, 100)), "peer_ensemble": ((128, 3, 100, 8),)}
TEST_SECONDS, BENCHMARK_SECONDS, ALL_SECONDS = 200, 480, 590  # by then these have ended: the sanitizers come last


def step(name: str, command: list[str], seconds: float) -> dict:
    """Runs a command that may take so long; its last line of output, status and seconds."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=max(seconds, 1))
        passed, lines = run.returncode == 0, run.stdout.strip().splitlines() or [""]
    except subprocess.TimeoutExpired:
        passed, lines = False, [f"stopped after {seconds:.0f} s"]
    print("\n".join(lines[-1:] if passed else lines[-60:]), flush=True)
    return {"passed": passed, "summary": lines[-1], "seconds": round(time.monotonic() - start, 1)}


def kernels(call: Callable[[], object]) -> int:
    """Launched by the second call."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in record.events())


def launched(loss: Loss, shape: Shape) -> dict:
    """Forward and backward, whatever the upstream gradient."""
    batch, leaves = harness.draw(loss, shape, torch.bfloat16, "cuda")
    upstream = torch.tensor(3.0, device="cuda")
    waiting = [loss.ours(batch), loss.ours(batch)]  # one for each call: a second backward computes its gradients anew
    forward = kernels(lambda: loss.ours(batch))
    backward = kernels(lambda: torch.autograd.grad(waiting.pop(), leaves, upstream))
    return {"loss": loss.name, "shape": list(shape), "forward": forward, "backward": backward}


def launches() -> dict:
    start, found = time.monotonic(), []
    try:
        for family, shapes in FEW_LAUNCHES.items():
            found += [launched(loss, shape) for loss in losses(family).values() for shape in shapes]
        summary = ", ".join(f"{f['loss']} {f['shape']} {f['forward']} + {f['backward']}" for f in found)
        passed = all(0 < f["forward"] and f["forward"] + f["backward"] <= harness.LAUNCHES for f in found)
    except Exception as error:
        passed, summary = False, harness.reason(error)
    print(f"== kernels launched, forward + backward: {summary}", flush=True)
    return {"passed": passed, "summary": summary, "seconds": round(time.monotonic() - start, 1), "found": found}


def with_kernels(document: dict, found: list[dict]) -> dict:
    """The results of these losses at these shapes say how many kernels a step launches, in whatever dtype."""
    counts = {(f["loss"], tuple(f["shape"])): f["forward"] + f["backward"] for f in found}
    for result in document["results"]:
        if (count := counts.get((result["loss"], tuple(result["shape"])))) is not None:
            result["kernels"] = count
    return document


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no GPU here; `make test` checks everything that needs none", file=sys.stderr)
        return 2
    if reason := kd.build_info()["why_not"].get("cuda"):
        print(f"gpu_check: the CUDA library is not loaded: {reason}", file=sys.stderr)
        return 2

    start = time.monotonic()
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()).strip("-")
    path = RESULTS / f"{name}.json"
    steps = {"tests": step("tests on CUDA", [sys.executable, "-m", "pytest", "-q", "tests", "-k", "cuda"], TEST_SECONDS)}
    steps["launches"] = launches()
    document = benchmarks.run(PLAN, "cuda", quick=False, until=start + BENCHMARK_SECONDS, path=path)
    if tool := shutil.which("compute-sanitizer"):
        for check in SANITIZERS:
            command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, "-m", "benchmarks.sanitized"]
            steps[check] = step(check, command, start + ALL_SECONDS - time.monotonic())
    else:
        print("== compute-sanitizer is not on PATH: skipped", flush=True)

    document = with_kernels(document, steps["launches"]["found"]) | {"steps": steps, "build": kd.build_info()}
    benchmarks.write(document, path)
    print(tables.summary(document), tables.absent(document), targets.table([document]), sep="\n\n")
    print(f"wrote {path}")
    return 0 if all(s["passed"] for s in steps.values()) and not benchmarks.failed(document) else 1


if __name__ == "__main__":
    sys.exit(main())
