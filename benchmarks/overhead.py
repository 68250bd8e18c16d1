"""What one call costs beside its arithmetic: kd_loss of a tiny batch, and softened_kl by what is added to the op.

    python -m benchmarks.overhead [--threads N]

Medians of turns of one run, in microseconds and in times of a function that does nothing, as a Markdown table. The op
writes the gradient too, unless none is wanted. A function that does nothing is the least that a loss with a backward of
its own can take in PyTorch, and a sum the least that a compiled graph can: what it takes longer than the same sum outside
of one is what torch.compile puts around any graph.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import kdkernels as kd
from kdkernels._names import REDUCTIONS

from .row_losses import draw
from .timing import alternate, spread

Stage = Callable[[], Sequence[Tensor]]

ROWS, CLASSES, T = 64, 100, 4.0
NOTHING = "nothing, forward + backward"
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
    student, teacher, target = draw(ROWS, CLASSES, torch.float32, "cpu", torch.Generator().manual_seed(0))
    constant = student.clone()
    student.requires_grad_()
    loss, gradient = torch.zeros(()), torch.zeros_like(constant)
    kernel = torch.ops.kdkernels.softened_kl.default
    given = dict(student=student, teacher=teacher, temperature=T, beta=0.5, scale_by_t2=True, kl_weight=1.0)
    given.update(reduction=REDUCTIONS["batchmean"], dim=1, grad_student=True)
    absent = {"float": 0.0, "int": 0, "bool": False}  # and None for tensors
    arguments = [given.get(each.name, absent.get(str(each.type))) for each in kernel._schema.arguments]

    def op() -> Sequence[Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return kernel(*arguments)

    def ours(student: Tensor) -> Tensor:
        return kd.softened_kl(student, teacher, temperature=T)

    def step(function: Callable[[Tensor], Tensor]) -> Stage:
        return lambda: torch.autograd.grad(function(student), student)

    return {
        "op": op,
        "forward, no gradient": lambda: (ours(constant),),
        "forward": lambda: (ours(student),),
        "forward + backward": step(ours),
        "kd_loss, forward + backward": step(lambda student: kd.kd_loss(student, teacher, target, temperature=T)),
        "forward + backward, compiled": step(torch.compile(ours)),
        NOTHING: step(lambda student: Nothing.apply(student, loss, gradient)),
        "sum, forward + backward": step(torch.sum),
        "sum, forward + backward, compiled": step(torch.compile(torch.sum)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    threads = parser.parse_args().threads
    if threads:
        torch.set_num_threads(threads)
    print("| stage | us | of nothing |", "| --- | --- | --- |", sep="\n")
    measured = alternate(stages(), "cpu", SECONDS)
    nothing = statistics.median(measured[NOTHING])
    for name, times in measured.items():
        median = statistics.median(times)
        print(f"| {name} | {median * 1e6:.1f} ± {100 * spread(times):.0f} % | {median / nothing:.2f} x |")


if __name__ == "__main__":
    main()
