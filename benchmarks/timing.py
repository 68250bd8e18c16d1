"""Contenders timed in turns, and what is said of their times.

Machines are noisy and their clocks drift, so contenders take turns within one run and only their ratios are quoted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


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


def alternate_stages(
    contenders: dict[str, tuple[Call, ...]], device: str, seconds: float, turn: float = 0.005
) -> dict[str, list[tuple[float, ...]]]:
    """Of contenders that consist of stages, each called as often as the one before it: seconds per call and stage, in each
    round. About `seconds` in all, every turn at least `turn` long."""

    def take(stages: tuple[Call, ...], repeats: int) -> tuple[float, ...]:
        # Not timed: what the contender before has left of the caches. Calls longer than a turn hardly notice.
        for _ in range((repeats + 2) // 4):
            for stage in stages:
                stage()
        return tuple(timed(stage, repeats, device) for stage in stages)

    def take_round() -> dict[str, tuple[float, ...]]:
        return {name: take(stages, repeats[name]) for name, stages in contenders.items()}

    repeats = {}
    for name, stages in contenders.items():
        # The first compile, allocate and fill caches. One at a time: what waits for its next stage holds memory.
        seconds_per_call = min(sum(take(stages, 1)) for _ in range(6))
        repeats[name] = max(1, round(turn / seconds_per_call))
    start = time.perf_counter()
    take_round()
    round_seconds = time.perf_counter() - start
    rounds = [take_round() for _ in range(max(5, round(seconds / round_seconds)))]
    return {name: [times[name] for times in rounds] for name in contenders}


def alternate(calls: dict[str, Call], device: str, seconds: float, turn: float = 0.005) -> dict[str, list[float]]:
    """The same of contenders of one stage."""
    times = alternate_stages({name: (call,) for name, call in calls.items()}, device, seconds, turn)
    return {name: [total for (total,) in rounds] for name, rounds in times.items()}


def spread(times: list[float]) -> float:
    """Half the distance between the quartiles over the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle


def ratios(times: dict[str, list[float]], other: str, ours: str) -> list[float]:
    """How many times longer `other` takes, round by round."""
    return [b / a for a, b in zip(times[ours], times[other])]


def ratio(times: dict[str, list[float]], other: str, ours: str) -> float:
    """The median of these."""
    return statistics.median(ratios(times, other, ours))
