"""What one call costs beside its arithmetic: softened_kl of a tiny batch, by what is added to the op.

    python -m benchmarks.overhead [--threads N]

Medians of turns of one run, in microseconds. The op writes the gradient too, unless none is wanted. The last line is the
least that a loss with a backward of its own can take in PyTorch: a function that does nothing.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

import kdkernels as kd
from kdkernels import ops

from .row_losses import draw
from .timing import Call, alternate

ROWS, CLASSES, T = 64, 100, 4.0
SECONDS = 10.0


class Nothing(torch.autograd.Function):
    """A loss and a gradient that are there already."""

    @staticmethod
    def forward(ctx, student: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient, None, None


def stages() -> dict[str, Call]:
    batch = draw(ROWS, CLASSES, torch.float32, "cpu", torch.Generator().manual_seed(0))
    student, teacher, _ = batch
    constant = student.clone()
    student.requires_grad_()
    loss, gradient = torch.zeros(()), torch.zeros_like(constant)
    options = (T, 0, 0, 0.5, 0.0, True, 1.0, 0.0, 0.0, 0, 2, 0, 1)

    def op():
        with torch._C._AutoDispatchBelowAutograd():
            ops.softened_kl.softened_kl.op(student, teacher, None, None, None, None, *options, True, False)

    return {
        "op": op,
        "forward, no gradient": lambda: kd.softened_kl(constant, teacher, temperature=T),
        "forward": lambda: kd.softened_kl(student, teacher, temperature=T),
        "forward + backward": lambda: torch.autograd.grad(kd.softened_kl(student, teacher, temperature=T), student),
        "nothing, forward + backward": lambda: torch.autograd.grad(Nothing.apply(student, loss, gradient), student),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    threads = parser.parse_args().threads
    if threads:
        torch.set_num_threads(threads)
    for name, times in alternate(stages(), "cpu", SECONDS).items():
        print(f"{name:30} {statistics.median(times) * 1e6:6.1f}")


if __name__ == "__main__":
    main()
