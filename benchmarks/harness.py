"""Measures one loss at one shape: ours, eager PyTorch, torch.compile, the packages that answer it, and the floor.

All take turns in one run. Inputs rotate through as many batches as fill the last-level cache twice, so that a small working
set is not always in the cache; a result says how many, and whether they did (a CUDA graph replays one batch). The floor is a
copy of the bytes that nobody can avoid or, where products of matrices take longer, torch.mm of their operations.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import memory, packages
from .machine import cache_bytes
from .problem import Batch, Function, Loss, Shape, Work
from .timing import Call, alternate, alternate_stages, ratios, spread

MOST_BATCHES = 2048  # a rotation of tiny batches would take minutes to draw
SMALL_BYTES = 2**23  # moved by a step of which overhead, not memory, is most: there we compile ours and replay graphs
LAUNCHES = 3  # of a step, at most: what "pure launch cost" stands for


class Input(NamedTuple):
    batch: Batch
    leaves: list[Tensor]  # those of it that are differentiated


class Effort(NamedTuple):
    """What is spent on one result."""

    both: float  # seconds, on forward + backward
    halves: float = 0.0  # seconds, on each of them; 0: no halves, no errors, nobody but ours and eager PyTorch
    compiled: bool = True  # torch.compile takes part, which takes seconds to begin
    until: float = math.inf  # of time.monotonic(): nothing is begun after it

    @classmethod
    def of(cls, device: str, quick: bool) -> Effort:
        # A GPU's clock is steadier.
        return cls(0.6, 0.2) if quick or device == "cuda" else cls(3.0, 1.0)


# Inputs


def draw(loss: Loss, shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> Input:
    batch = loss.draw(*shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(seed))
    return differentiable(loss, batch)


def differentiable(loss: Loss, batch: Batch) -> Input:
    return Input(batch, [getattr(batch, name).requires_grad_() for name in loss.differentiated])


def copied(loss: Loss, given: Input, dtype: torch.dtype | None = None) -> Input:
    """With numbers of that dtype, or of their own."""

    def copy(x: Tensor) -> Tensor:
        return x.detach().to(dtype if x.is_floating_point() else None, copy=True)

    return differentiable(loss, type(given.batch)(*map(copy, given.batch)))


def rotation(loss: Loss, shape: Shape, dtype: torch.dtype, device: str) -> list[Input]:
    first = draw(loss, shape, dtype, device)
    count = min(MOST_BATCHES, -(-2 * cache_bytes(device) // input_bytes(first)))
    return [first, *(draw(loss, shape, dtype, device, seed) for seed in range(1, count))]


def input_bytes(given: Input) -> int:
    return sum(x.numel() * x.element_size() for x in given.batch)


# Contenders


def step(function: Function, inputs: list[Input]) -> Call:
    """Forward + backward of the next batch."""
    turn = itertools.cycle(inputs)

    def call():
        batch, leaves = next(turn)
        torch.autograd.grad(function(batch), leaves)

    return call


def halves(function: Function, inputs: list[Input]) -> tuple[Call, Call]:
    """The same in two: losses wait for their backward in the order in which they were computed."""
    turn, waiting = itertools.cycle(inputs), deque()

    def forward():
        batch, leaves = next(turn)
        waiting.append((function(batch), leaves))

    def backward():
        torch.autograd.grad(*waiting.popleft())

    return forward, backward


def graphed(call: Call) -> Call:
    """Replays what a call launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def launches() -> Call:
    counter = torch.zeros(1, device="cuda")

    def call():
        for _ in range(LAUNCHES):
            counter.add_(1)

    return call


def floors(work: Work, dtype: torch.dtype, device: str) -> dict[str, Call]:
    """`copy`: half of the bytes read, half written. `copy, fresh`: the gradient's part into memory that the process has to be
    given first, as a gradient is. `product`: one multiplication of matrices."""
    half, written = (max(1, size // 4) for size in (work.moved // 2, min(work.written, work.moved // 2)))  # of float32
    count = min(MOST_BATCHES, -(-2 * cache_bytes(device) // (4 * half)))
    sources = itertools.cycle([torch.ones(half, device=device) for _ in range(count)])
    destination = torch.empty(half, device=device)
    calls: dict[str, Call] = {"copy": lambda: destination.copy_(next(sources))}
    if device == "cpu":

        def fresh():
            source = next(sources)
            torch.empty(written).copy_(source[:written])
            destination[written:].copy_(source[written:])

        calls["copy, fresh"] = fresh
    if work.matrix:
        m, k, n = work.matrix
        left, right = (torch.ones(rows, k, device=device, dtype=dtype) for rows in (m, n))
        out = torch.empty(m, n, device=device, dtype=dtype)
        calls["product"] = lambda: torch.mm(left, right.T, out=out)
    return calls


# Results


def errors(loss: Loss, functions: dict[str, Function], given: Input) -> dict[str, dict[str, float]]:
    """Largest error of loss and gradients against float64 on one input, relative to their largest number; none where
    the truth does not fit into memory."""

    def results(function: Function, given: Input) -> list[Tensor]:
        value = function(given.batch)
        return [x.detach().double() for x in (value, *torch.autograd.grad(value, given.leaves))]

    def error(found: list[Tensor], expected: list[Tensor]) -> float:
        return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, expected))

    try:
        truth = results(loss.eager, copied(loss, given, torch.float64))
    except torch.OutOfMemoryError:
        return {}
    found = {}
    for name, function in functions.items():
        value, *gradients = results(function, copied(loss, given))
        found[name] = {"loss_error": error([value], truth[:1]), "gradient_error": error(gradients, truth[1:])}
    return found


def runnable(functions: dict[str, Function], inputs: dict[str, list[Input]], absent: dict[str, str]) -> dict[str, Function]:
    """Those that can take a step here. Ours must; why another cannot is written down, whatever it raised."""
    able = {}
    for name, function in functions.items():
        try:
            step(function, inputs[name])()
            able[name] = function
        except Exception as error:
            if name == "kdkernels":
                raise
            absent[name] = reason(error)
    return able


def replays(functions: dict[str, Function], inputs: list[Input], absent: dict[str, str]) -> dict[str, Call]:
    """CUDA graphs of ours and of eager PyTorch, where they can be captured, and of launches alone."""
    calls = {"launches, graph": graphed(launches())}
    for name in ("kdkernels", "eager"):
        try:
            calls[f"{name}, graph"] = graphed(step(functions[name], inputs))
        except RuntimeError as error:
            absent[f"{name}, graph"] = reason(error)
    return calls


def reason(error: Exception) -> str:
    """In one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def attempt(loss: Loss, shape: Shape, dtype: torch.dtype, device: str, effort: Effort) -> dict:
    """One result; where ours cannot be measured, why, as of anybody else who is absent."""
    try:
        if time.monotonic() > effort.until:
            raise TimeoutError("no time was left")
        return measure(loss, shape, dtype, device, effort)
    except Exception as error:
        print(f"\n{loss.name} {shape} {dtype}: {reason(error)}", file=sys.stderr)
        return heading(loss, shape, dtype) | {"contenders": {}, "absent": {"kdkernels": reason(error)}}


def measure(loss: Loss, shape: Shape, dtype: torch.dtype, device: str, effort: Effort) -> dict:
    torch._dynamo.reset()
    work, inputs = loss.work(*shape, size=dtype.itemsize), rotation(loss, shape, dtype, device)
    small = work.moved <= SMALL_BYTES
    functions, absent = {"kdkernels": loss.ours, "eager": loss.eager}, {}
    answers: dict[str, Function] = {}
    if effort.halves:
        answers, absent = packages.answering(loss.name, device)
        if effort.compiled:
            functions["compile"] = torch.compile(loss.eager)
        functions |= loss.others | answers
        if effort.compiled and small:
            functions["kdkernels, compile"] = torch.compile(loss.ours)
    # A package may write the gradient over the logits: it gets batches of its own.
    given = {name: [copied(loss, x) for x in inputs] if name in answers else inputs for name in functions}
    functions = runnable(functions, given, absent)
    steps = {name: step(function, given[name]) for name, function in functions.items()}
    if device == "cuda" and small and effort.halves:
        steps |= replays(functions, inputs, absent)
    if device == "cpu" and dtype.itemsize == 2 and effort.halves:
        steps["kdkernels, float32"] = step(loss.ours, [copied(loss, x, torch.float32) for x in inputs])

    floor = floors(work, dtype, device)
    times = alternate(steps | floor, device, effort.both)
    contenders = {name: {"microseconds": median(of), "spread": spread(of)} for name, of in times.items()}
    for name in times:
        over = ratios(times, name, "kdkernels")
        contenders[name] |= {"over": statistics.median(over), "over_spread": spread(over)}
    if effort.halves:
        pairs = {name: halves(function, given[name]) for name, function in functions.items()}
        for name, rounds in alternate_stages(pairs, device, effort.halves).items():
            forward, backward = zip(*rounds)
            contenders[name] |= {"forward_microseconds": median(forward), "backward_microseconds": median(backward)}
        for name, error in (errors(loss, functions, inputs[0]) if loss.comparable else {}).items():
            contenders[name] |= error
    for name in functions:
        contenders[name]["peak_bytes"] = memory.peak_bytes(steps[name], device)

    shares = {"copy": contenders["copy"]["over"]}
    if work.matrix:
        m, k, n = work.matrix
        shares["product"] = contenders["product"]["over"] * work.computed / (2 * m * k * n)
    return {
        **heading(loss, shape, dtype),
        "work": {"bytes": work.bytes, "operations": work.operations},
        "inputs": {
            "batches": len(inputs),
            "bytes": input_bytes(inputs[0]),
            "fill_cache": len(inputs) * input_bytes(inputs[0]) >= 2 * cache_bytes(device),
        },
        "contenders": contenders,
        "packages": [name for name in answers if name in functions],
        "floor": max(shares, key=shares.get),
        "share_of_floor": shares,
        "absent": absent,
    }


def resident_memory(loss: Loss, family: str, shape: Shape, dtype: torch.dtype) -> dict[str, dict[str, int]]:
    """Contender -> memory of one step as the operating system counts it."""
    sides = ("kdkernels", "eager")
    return {side: {"resident_bytes": memory.resident_bytes(family, loss.name, side, shape, dtype)} for side in sides}


def heading(loss: Loss, shape: Shape, dtype: torch.dtype) -> dict:
    reasons = loss.memory_only | {shape: reason for of in loss.shapes.values() for shape, reason in of.items()}
    return {
        "loss": loss.name,
        "axes": loss.axes,
        "shape": list(shape),
        "reason": reasons.get(shape, ""),
        "dtype": str(dtype).removeprefix("torch."),
    }


def median(seconds: Sequence[float]) -> float:
    """In microseconds."""
    return statistics.median(seconds) * 1e6
