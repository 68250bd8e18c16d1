"""Knowledge distillation.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015 (presented at the
NIPS 2014 Deep Learning Workshop), https://arxiv.org/abs/1503.02531. A small student learns from the
labels and from the softened outputs of a large teacher:

    loss = ce_weight * CE(student, label) + kl_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))

    python -m python_trainers.kd --train-images 50 --out out/kd                # distilled, from 50 images
    python -m python_trainers.kd --train-images 50 --kl-weight 0 --out out/ce  # the same without a teacher
    python -m python_trainers.kd --preset cifar100-kd-resnet32x4-resnet8x4 --data-root DIR

Reproduced: section 6, soft targets let a network learn from few examples. On digits, over 8 seeds (mean
and sample standard deviation; ``python -m python_trainers.demo``): 81.9 +- 2.5 % without a teacher, 89.6
+- 1.2 % with one. Seconds per network on one CPU core.

Deviations from the paper:
1. Data and networks: 8x8 digits and small convolutional networks instead of MNIST, speech and JFT. The presets
   are a later paper's: Tian et al. 2020 (CRD), CIFAR-100.
2. Optimizer and schedule: SGD with momentum and a cosine; the paper gives none for a comparable task.
3. One teacher, not an ensemble of specialists (section 5).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import kdkernels as kd
from accelerate import Accelerator
from torch import nn

from python_trainers.common.checks import require_at_least, require_not_negative, require_positive, select
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch
from python_trainers.common.fit import Loss, Objective, learn_from_labels
from python_trainers.common.options import load_data
from python_trainers.common.recipe import SMOKE_EPOCHS, check_recipe
from python_trainers.common.student import train_student
from python_trainers.common.teacher import (
    Pretraining,
    Teacher,
    TeacherOptions,
    check_networks,
    obtain_teacher,
)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "kd", Args, train, argv, "Knowledge distillation (Hinton, Vinyals, Dean 2015).", PRESETS
    )


def pretraining(args: Args) -> Pretraining | None:
    """The teacher's training, on the whole training split; None: no teacher."""
    return Pretraining(args.teacher_model, args.teacher_epochs, few=False) if args.kl_weight > 0 else None


def train(args: Args) -> dict[str, Any]:
    """Train the student, and before it the teacher if there is none yet; returns the summary."""
    check(args)
    if args.smoke:
        args = replace(args, epochs=SMOKE_EPOCHS, teacher_epochs=SMOKE_EPOCHS)
    folder, accelerator = args.folder("kd"), Accelerator()
    dataset, images = load_data(args, seed=args.seed)
    teacher, objective, losses = None, learn_from_labels, {"loss": "cross entropy"}
    if plan := pretraining(args):
        teacher = obtain_teacher(plan, args, folder / "teacher", dataset, images, accelerator)
        objective = learn_from(teacher, args)
        losses = {"loss": "total", "ce": "cross entropy", "kl": "$T^2$ KL"}
    _, summary = train_student(
        folder,
        args.student_model,
        args,
        dataset,
        images,
        teacher,
        objective,
        accelerator,
        method=select(args, "temperature", "ce_weight", "kl_weight"),
        losses=losses,
        seed=args.seed,
    )
    return summary


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


def check(args: Args) -> None:
    """Refuse, before anything is trained, what would fail later or train nothing."""
    check_recipe(args)
    check_networks(args)
    require_positive(args, "temperature")
    require_not_negative(args, "ce_weight", "kl_weight")
    require_at_least(args, 0, "seed")


if __name__ == "__main__":
    sys.exit(main())
