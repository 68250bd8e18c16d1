"""By how many bytes the largest resident size of a process grows in one step on a CPU, gradients included.

    python -m benchmarks.one_step FAMILY LOSS kdkernels|eager DTYPE SIZE...

`resident_bytes` of benchmarks/memory.py runs it.
"""

from __future__ import annotations

import sys

import torch

from .families import losses
from .harness import draw, step
from .memory import largest


def main() -> None:
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
