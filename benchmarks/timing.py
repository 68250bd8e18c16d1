"""Medians of calls timed alternately, and peak memory.

Machines are noisy and their clocks drift, so contenders take turns within one run and only their ratios are quoted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


def seconds_per_row(quick: bool) -> float:
    """Of a table."""
    return 1.0 if quick else 8.0


def timed(call: Call, repeats: int, device: str) -> float:
    """Seconds per call of `repeats` calls in a row."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def alternate(calls: dict[str, Call], device: str, seconds: float, turn: float = 0.005) -> dict[str, list[float]]:
    """Seconds per call of each contender in each round: about `seconds` in all, every turn at least `turn` long."""
    repeats = {}
    for name, call in calls.items():
        timed(call, 3, device)  # compiles, allocates, fills caches
        repeats[name] = max(1, round(turn / timed(call, 3, device)))
    round_seconds = sum(timed(call, repeats[name], device) * repeats[name] for name, call in calls.items())
    rounds = max(5, round(seconds / round_seconds))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call, repeats[name], device))
    return times


def spread(times: list[float]) -> float:
    """Half the distance between the quartiles over the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle


def ratio(times: dict[str, list[float]], other: str, ours: str) -> float:
    """How many times longer `other` takes: the median of the ratios round by round."""
    return statistics.median(b / a for a, b in zip(times[ours], times[other]))


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
