"""Knowledge distillation.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015 (presented at the
NIPS 2014 Deep Learning Workshop), https://arxiv.org/abs/1503.02531. A small student learns from the
labels and from the softened outputs of a large teacher:

    loss = ce_weight * CE(student, label) + kl_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))

    python -m python_trainers.kd --train-images 50 --out out/kd                # distilled, from 50 images
    python -m python_trainers.kd --train-images 50 --kl-weight 0 --out out/ce  # the same without a teacher
    python -m python_trainers.kd --preset cifar100-kd-resnet32x4-resnet8x4 --data-root DIR

Reproduced: section 6, soft targets let a network learn from few examples. On digits, over 8 seeds and each at
its best learning rate (mean and sample standard deviation; ``python -m python_trainers.demo``): 83.8 +- 2.5 %
without a teacher, 89.6 +- 1.2 % with one, by seed a gain of 5.8 +- 1.7. From 1,000 images a student at its
best rate gains nothing (docs/results/digits-all.md). Seconds per network on one CPU core.

Deviations from the paper:
1. Data and networks: 8x8 digits and small convolutional networks instead of MNIST, speech and JFT. The presets
   are a later paper's: Tian et al. 2020 (CRD), CIFAR-100.
2. Optimizer and schedule: SGD with momentum and a cosine; the paper gives none for a comparable task.
3. One teacher, not an ensemble of specialists (section 5).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import kdkernels as kd
from torch import nn
from typing_extensions import Unpack

from python_trainers.common.checks import require_not_negative, require_positive
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.loop import Loss, Objective, learn_from_labels
from python_trainers.common.teacher import Pretraining, Teacher, TeacherOptions
from python_trainers.presets.kd import PRESETS


@dataclass(frozen=True)
class Args(TeacherOptions):
    """Options of the method; defaults are the paper's where it names one."""

    temperature: float = 4.0  # section 3: 2.5 to 4 is best for the smallest student
    ce_weight: float = 0.1  # section 2: "considerably lower" than the other; Tian et al. 2020 (CRD)
    kl_weight: float = 0.9  # Tian et al. 2020; 0: no teacher, plain cross entropy, --ce-weight unused
    batch_size: int = 64  # over all processes; Tian et al. 2020, as the next three: the paper names none
    learning_rate: float = 0.01  # at the start, as for their smallest nets
    momentum: float = 0.9  # with Nesterov's step, which is ours
    weight_decay: float = 5e-4  # L2

    def check(self) -> None:
        super().check()
        require_positive(self, "temperature")
        require_not_negative(self, "ce_weight", "kl_weight")

    def pretraining(self) -> Pretraining | None:
        return super().pretraining() if self.kl_weight > 0 else None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "kd", Args, train, argv, "Knowledge distillation (Hinton, Vinyals, Dean 2015).", PRESETS
    )


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train the student, and before it the teacher if there is none yet.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` and ``teacher`` are modules that give
    logits; the student is trained in place, the teacher is frozen. Returns what summary.json holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("kd", args, **objects)
    if args.kl_weight == 0:
        return experiment.train_student(learn_from_labels, losses={"loss": "cross entropy"}).summary
    teacher = experiment.teacher()
    return experiment.train_student(
        learn_from(teacher, args),
        teacher=teacher,
        losses={"loss": "total", "ce": "cross entropy", "kl": "$T^2$ KL"},
    ).summary


def learn_from(teacher: Teacher, args: Args) -> Objective:
    """The loss of the paper."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        return kd.kd_loss(
            model(batch.pixels),
            teacher(batch.pixels),
            batch.labels,
            temperature=args.temperature,
            ce_weight=args.ce_weight,
            kl_weight=args.kl_weight,
            return_parts=True,
        )

    return objective


if __name__ == "__main__":
    sys.exit(main())
