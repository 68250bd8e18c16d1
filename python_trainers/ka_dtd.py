"""Knowledge adjustment and dynamic temperature distillation: the teacher's lesson repaired, image by image.

T. Wen, S. Lai, X. Qian, "Preparing Lessons: Improve Knowledge Distillation with Better Supervision",
Neurocomputing 454, 2021, https://arxiv.org/abs/1911.07471. With p the teacher, q the student, y the label:

    T_i    = T + beta * (mean of w - w_i)                              dynamic temperature
    loss_i = T_i^2 KL(A(p_i) || q_i), both softened by T_i             averaged over the batch

w is large for images that are hard for the student now: (1 - cosine of the two logit vectors)^gamma for flsw,
1 / the student's largest probability for cwsm. A repairs p where its largest entry is not the label's: ps
exchanges the two, lsr replaces p by the smoothed label.

    python -m python_trainers.ka_dtd --train-images 50 --out out/ka_dtd
    python -m python_trainers.ka_dtd --teacher-errors 0.2 --adjust none --out out/misled  # it errs
    python -m python_trainers.ka_dtd --preset cifar100-ka-dtd-resnet32x4-resnet8x4 --data-root DIR

For a dynamic temperature metrics.jsonl has, beside the loss parts, its mean and ``clamped``, the share of the
epoch's images whose temperature was raised to --t-min.

Deviations from the paper:
1. Data, networks, recipe: digits, small networks and kd's recipe by default.
2. T = 4, beta = 1 for flsw and 4 / classes for cwsm, gamma = 1, smoothing 0.1 are ours; they keep T_i > 0.
3. Temperatures are clamped at --t-min; the paper does not say what happens to one that is not positive.
4. Under ps, flsw compares the student with the exchanged logits, those it learns from.
5. The means are over the batch of all processes.
6. --lsr-scale is ours. By default, as in the formula, rows replaced by lsr weigh T_i^2 times a cross entropy.
7. --teacher-errors is ours: it shows what the repair is for, where the teacher errs too seldom to tell.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import kdkernels as kd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Unpack

from python_trainers.common.checks import require_not_negative, require_positive, require_share
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch, require_numbers
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.loop import Loss, Objective, all_processes
from python_trainers.common.options import refuse_accumulation
from python_trainers.common.seeding import derived_seed
from python_trainers.common.teacher import Teacher, TeacherOptions
from python_trainers.presets.ka_dtd import PRESETS


@dataclass(frozen=True)
class Args(TeacherOptions):
    """Options of the method; defaults are ours, see deviation 2."""

    adjust: Literal["none", "ps", "lsr"] = "ps"  # section 3.1: knowledge adjustment
    temperature_mode: Literal["const", "flsw", "cwsm"] = "flsw"  # section 3.2: dynamic temperature; const: T
    temperature: float = 4.0  # T
    beta: float | None = None  # how far temperatures spread; None: 1 for flsw, 4 / classes for cwsm
    gamma: float = 1.0  # flsw: exponent of w
    normalize: Literal["l1"] | None = None  # l1: w over its sum in the batch; then beta is 10 or more
    t_min: float = 1.0  # least temperature of an image
    smoothing: float = 0.1  # of lsr
    lsr_scale: float = 1.0  # of the rows that lsr replaces: T_i^2 multiplies them, too, but nothing softens them
    ce_weight: float = 0.0  # of the cross entropy with the labels; the repaired target holds them already
    teacher_errors: float = 0.0  # share of training images for which the teacher is made to err

    def check(self) -> None:
        super().check()
        require_positive(self, "temperature", "t_min")
        require_not_negative(self, "gamma", "ce_weight", "lsr_scale")
        if self.beta is not None:
            require_not_negative(self, "beta")
        require_share(self, "smoothing", "teacher_errors")
        if self.temperature_mode != "const":
            refuse_accumulation(self, "temperatures depend on means over the whole batch")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "ka_dtd", Args, train, argv, "Knowledge adjustment, dynamic temperature (Wen et al. 2021).", PRESETS
    )


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train the student, and before it the teacher if there is none yet.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` and ``teacher`` are modules that give
    logits; the student is trained in place, the teacher is frozen. ``teacher_errors`` needs a Dataset, whose
    images have numbers. Returns what summary.json holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("ka_dtd", args, **objects)
    if args.beta is None:
        beta = 4 / experiment.dataset.classes if args.temperature_mode == "cwsm" else 1.0
        args = experiment.complete(beta=beta)
    if args.teacher_errors > 0:
        require_numbers(experiment.images, "--teacher-errors, which are the same in every epoch,")
    teacher = experiment.teacher()
    return experiment.train_student(
        learn_from(teacher, args, experiment.accelerator),
        teacher=teacher,
        losses={"loss": "total", "ce": "cross entropy", "kl": "$T_i^2$ KL"},
    ).summary


def learn_from(teacher: Teacher, args: Args, accelerator: Accelerator) -> Objective:
    """KA and DTD in one loss."""
    group = all_processes(accelerator)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        taught = mislead(teacher(batch.pixels), batch.index, args.teacher_errors, args.seed)
        row_weight = None
        if args.adjust == "lsr":
            row_weight = torch.where(taught.argmax(-1) == batch.labels, 1.0, args.lsr_scale)
        loss, parts = kd.dynamic_temperature_kl(
            model(batch.pixels),
            taught,
            batch.labels,
            temperature=args.temperature,
            beta=args.beta,
            gamma=args.gamma,
            mode=args.temperature_mode,
            adjust=args.adjust,
            smoothing=args.smoothing,
            normalize=args.normalize,
            t_min=args.t_min,
            ce_weight=args.ce_weight,
            row_weight=row_weight,
            return_parts=True,
            group=group,
        )
        temperature = parts.pop("temperature")
        if args.temperature_mode != "const":
            parts["temperature"] = temperature.mean()
            parts["clamped"] = (temperature <= args.t_min).float().mean()
        return loss, parts

    return objective


def mislead(logits: Tensor, index: Tensor, share: float, seed: int) -> Tensor:
    """``logits`` [N, C] whose largest changed places with that of another class for a share of all images.

    Which images, and which classes, follows from ``seed`` and ``index`` [N]: in every epoch the same.
    """
    if share == 0:
        return logits
    classes = logits.shape[-1]
    drawn = scramble(index + derived_seed(seed, "teacher errors"))
    misled = drawn < share * 2**32
    largest = logits.argmax(-1, keepdim=True)
    other = (largest + 1 + scramble(drawn + 1).unsqueeze(-1) % (classes - 1)) % classes
    of_largest, of_other = logits.gather(-1, largest), logits.gather(-1, other)
    exchanged = logits.scatter(-1, largest, of_other).scatter(-1, other, of_largest)
    return torch.where(misled.unsqueeze(-1), exchanged, logits)


def scramble(number: Tensor) -> Tensor:
    """A hash from int64 to 32 bits, uniform on consecutive numbers."""
    number = number & 0xFFFFFFFF
    for _ in range(3):
        number = ((number >> 16) ^ number) * 0x45D9F3B & 0xFFFFFFFF
    return (number >> 16) ^ number


if __name__ == "__main__":
    sys.exit(main())
