"""What one call costs beside its arithmetic: softened_kl of a tiny batch, by what is added to the op.

    python -m benchmarks.overhead [--threads N]

Medians of turns of one run, in microseconds, as a Markdown table. The op writes the gradient too, unless none is wanted. A
function that does nothing is the least that a loss with a backward of its own can take in PyTorch, and a sum the least that a
compiled graph can: what it takes longer than the same sum outside of one is what torch.compile puts around any graph.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import kdkernels as kd
from kdkernels import ops

from .row_losses import draw
from .timing import alternate, spread

Stage = Callable[[], Sequence[Tensor]]

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


def stages() -> dict[str, Stage]:
    """What leaves a loss leaves it first; what goes backward leaves the gradient."""
    student, teacher, _ = draw(ROWS, CLASSES, torch.float32, "cpu", torch.Generator().manual_seed(0))
    constant = student.clone()
    student.requires_grad_()
    loss, gradient = torch.zeros(()), torch.zeros_like(constant)
    options = (T, 0, 0, 0.5, 0.0, True, 1.0, 0.0, 0.0, 0, 2, 0, 1)

    def op() -> Sequence[Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return ops.softened_kl.softened_kl.op(student, teacher, None, None, None, None, *options, True, False)

    def ours(student: Tensor) -> Tensor:
        return kd.softened_kl(student, teacher, temperature=T)

    def step(function: Callable[[Tensor], Tensor]) -> Stage:
        return lambda: torch.autograd.grad(function(student), student)

    return {
        "op": op,
        "forward, no gradient": lambda: (ours(constant),),
        "forward": lambda: (ours(student),),
        "forward + backward": step(ours),
        "forward + backward, compiled": step(torch.compile(ours)),
        "nothing, forward + backward": step(lambda student: Nothing.apply(student, loss, gradient)),
        "sum, forward + backward": step(torch.sum),
        "sum, forward + backward, compiled": step(torch.compile(torch.sum)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    threads = parser.parse_args().threads
    if threads:
        torch.set_num_threads(threads)
    print("| stage | us |", "| --- | --- |", sep="\n")
    for name, times in alternate(stages(), "cpu", SECONDS).items():
        print(f"| {name} | {statistics.median(times) * 1e6:.1f} ± {100 * spread(times):.0f} % |")


if __name__ == "__main__":
    main()
