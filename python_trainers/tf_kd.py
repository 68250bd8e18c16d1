"""Teacher-free knowledge distillation: what a teacher gives is much like label smoothing.

L. Yuan, F. Tay, G. Li, T. Wang, J. Feng, "Revisiting Knowledge Distillation via Label Smoothing
Regularization", CVPR 2020, https://arxiv.org/abs/1909.11723; code by the authors:
https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation. With q the learner, p its teacher, both
softened by T where written so, y the label, alpha the weight of the soft part:

    kd        (1 - alpha) CE(y, q) + alpha KL(p_T || q_T)                the teacher teaches     equation 4
    re_kd     the same, the student teaches the teacher, which is the network that is evaluated
    de_kd     the same, the teacher was trained for few epochs (--teacher-epochs)
    self      the same, the student's first version teaches its second                          equation 7
    reg       the same with a hand-made p: a on the label, the rest shared, softened by T       equation 9
    lsr       cross entropy with smoothed labels                                           equations 1 to 3
    baseline  cross entropy

    python -m python_trainers.tf_kd --mode reg --train-images 50 --out out/tf_kd
    python -m python_trainers.tf_kd --preset cifar100-self-resnet18 --data-root DIR

Reproduced: a teacher that knows nothing but the label helps (section 4.2). From 50 images of digits, over 8
seeds and each at its best learning rate (mean and sample standard deviation; ``python -m
python_trainers.demo``): 83.8 +- 2.5 % from labels alone, 86.0 +- 1.7 % by reg, by seed a gain of 2.1 +- 1.6.
Not reproduced there: self loses 4.4 +- 3.2 (docs/results/digits-50.md). Seconds per network on one CPU core.

Paper and official code differ. ``--form code``: the soft part of kd, re_kd, de_kd and self is multiplied by
T^2 and by --multiplier, that of reg by --multiplier, and reg's learner is not softened. ``--form paper``: no
T^2, no multiplier, and reg's learner is softened by T. In the official code the KL is, moreover, the mean
over all entries (``--reduction elementmean``), 1 / classes of the usual one; its multipliers belong to that.

Deviations from the paper:
1. Data, networks, recipe: digits, small networks and kd's recipe by default; presets have the authors'.
2. KL is the mean over images by default (``--reduction batchmean``) and the multiplier 1: with as many
   classes as the multiplier the authors' element-wise mean is the same.
3. The last epoch is reported; the authors report the best on the test set.
4. A de_kd teacher goes through its whole schedule in its few epochs; under milestones, as in the presets,
   that is the beginning of the long one, as the authors have it.
5. self, re_kd: the network that teaches learned from the same images as the learner.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import kdkernels as kd
from torch import nn
from typing_extensions import Unpack

from python_trainers.common.checks import require_positive, require_share
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.loop import Loss, Objective, learn_from_labels
from python_trainers.common.teacher import Pretraining, Teacher, TeacherOptions
from python_trainers.presets.tf_kd import PRESETS

# Of the official settings: the mobile networks' for kd, de_kd and self, ResNet-18's for re_kd and reg.
ALPHA = {"kd": 0.95, "re_kd": 0.6, "de_kd": 0.95, "self": 0.95, "reg": 0.1}


@dataclass(frozen=True)
class Args(TeacherOptions):
    """Options of the method; where no source is given, defaults are ours."""

    mode: Literal["kd", "re_kd", "de_kd", "self", "reg", "lsr", "baseline"] = "reg"  # see the docstring
    form: Literal["paper", "code"] = "code"  # where the two differ
    alpha: float | None = None  # of the soft part; None: 0.95 for kd, de_kd, self, 0.6 for re_kd, 0.1 for reg
    temperature: float = 20.0  # official settings of most networks
    multiplier: float = 1.0  # of the soft part under --form code
    reduction: Literal["batchmean", "elementmean"] = "batchmean"  # of the KL; elementmean: the official code
    correct_prob: float = 0.99  # a, of reg; section 4.2: >= 0.9
    smoothing: float = 0.1  # of lsr; official code
    convention: Literal["paper", "others"] = "paper"  # lsr: over all classes, or over the others (code)

    @property
    def trained_model(self) -> str:
        return self.teacher_model if self.mode == "re_kd" else self.student_model

    def check(self) -> None:
        super().check()
        require_positive(self, "temperature", "multiplier")
        require_share(self, "correct_prob", "smoothing")
        if self.alpha is not None:
            require_share(self, "alpha")

    def completed(self) -> "Args":
        return replace(self, alpha=ALPHA.get(self.mode, 0.0) if self.alpha is None else self.alpha)

    def pretraining(self) -> Pretraining | None:
        if self.mode in ("kd", "de_kd"):
            return super().pretraining()
        if self.mode in ("re_kd", "self"):
            return Pretraining(self.student_model, self.epochs, few=True)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console("tf_kd", Args, train, argv, "Teacher-free KD (Yuan et al. 2020).", PRESETS)


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train the learner, and before it the network that teaches if there is none yet.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` is the learner, whatever the mode, and
    is trained in place; ``teacher`` teaches it, of re_kd the small network. For self without a teacher the
    student is a function that returns a new module. Returns what summary.json holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("tf_kd", args, **objects)
    teacher = experiment.teacher() if args.pretraining() else None
    soft_part = {"loss": "total", "ce": "cross entropy", "kl": "KL"}
    return experiment.train_student(
        learn_from(teacher, experiment.args),
        teacher=teacher,
        losses={"loss": args.mode} if args.mode in ("lsr", "baseline") else soft_part,
    ).summary


def learn_from(teacher: Teacher | None, args: Args) -> Objective:
    """The loss that ``--mode`` names."""
    if args.mode == "baseline":
        return learn_from_labels
    if args.mode == "lsr":
        return partial(learn_from_smoothed_labels, args)
    if args.mode == "reg":
        return partial(learn_from_virtual_teacher, args)
    return partial(learn_from_network, args, teacher)


def learn_from_network(args: Args, teacher: Teacher, model: nn.Module, batch: Batch) -> Loss:
    """Equation 4, or the official code's; ``kd_loss`` has the T^2 of the code."""
    scale = args.multiplier if args.form == "code" else args.temperature**-2
    return kd.kd_loss(
        model(batch.pixels),
        teacher(batch.pixels),
        batch.labels,
        temperature=args.temperature,
        ce_weight=1 - args.alpha,
        kl_weight=args.alpha * scale,
        reduction=args.reduction,
        return_parts=True,
    )


def learn_from_virtual_teacher(args: Args, model: nn.Module, batch: Batch) -> Loss:
    """Equation 9, or the official code's."""
    code = args.form == "code"
    return kd.virtual_teacher_loss(
        model(batch.pixels),
        batch.labels,
        correct_prob=args.correct_prob,
        temperature=args.temperature,
        student_temperature=1.0 if code else args.temperature,
        ce_weight=1 - args.alpha,
        kl_weight=args.alpha * (args.multiplier if code else 1),
        reduction=args.reduction,
        return_parts=True,
    )


def learn_from_smoothed_labels(args: Args, model: nn.Module, batch: Batch) -> Loss:
    """Equations 1 to 3, or the official code's, which leaves the label out of what is shared."""
    logits = model(batch.pixels)
    loss = kd.label_smoothing_loss(
        logits, batch.labels, smoothing=args.smoothing, convention=args.convention
    )
    return loss, {}


if __name__ == "__main__":
    sys.exit(main())
