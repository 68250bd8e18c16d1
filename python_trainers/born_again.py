"""Born-again networks: generations of one architecture, each taught by the one before.

T. Furlanello, Z. Lipton, M. Tschannen, L. Itti, A. Anandkumar, "Born-Again Neural Networks", ICML 2018,
https://arxiv.org/abs/1805.04770. Generation 0 learns from labels; generation k starts from new weights and
learns from generation k - 1 alone, by the same recipe. With q the student, p the teacher, y the label:

    ban     KL(p || q), whose gradient is that of the paper's H(p, q)
    ban+l   label_weight * CE(y, q) + teacher_weight * KL(p || q)
    cwtm    CE(y, q), each sample weighted by the teacher's largest probability             equation 10
    dkpp    H(p', q), p' being p with all but its largest probability permuted              equation 11

    python -m python_trainers.born_again --train-images 50 --out out/born_again
    python -m python_trainers.born_again --preset cifar100-densenet_90_60-ban --data-root DIR

Reproduced: generations averaged pass any of them (section 4.2). From 50 images of digits, over 8 seeds and at
the best learning rate (mean and sample standard deviation; ``python -m python_trainers.demo``): generation 0
83.8 +- 2.5 %, generation 1 85.4 +- 2.4 %, generation 2 82.5 +- 4.2 %, the three together 88.3 +- 2.4 %. Not
clear there: by seed generation 1 gains 1.5 +- 3.1. Seconds per network on one CPU core.

The last generation is the run at OUT, the others are runs at OUT/generation-K. OUT/summary.json has the test
accuracy of each and, as ensemble_2 and ensemble_3, of the mean probabilities of the last two and three;
where there are fewer born-again generations, generation 0 fills in (as the paper does for DenseNet-80-120).

Deviations from the paper:
1. Data and networks: digits and a small network by default, seconds per generation; presets have the paper's.
2. Both weights of ban+l are 1: the paper gives none.
3. The paper does not say how often dkpp permutes anew; by default for every sample of every step (--scope).
4. cwtm's confidences have mean 1 over the batch of all processes; --no-normalise takes them as they are.
5. --temperature, for all but cwtm, is an extension: T^2 times the loss at T; the paper has T = 1.
6. Presets: the wide ResNets drop 0.3 as their authors' do, the paper gives no rate; how DenseNets' layers are
   divided among the blocks is ours, see docs/models.md.
7. No language models (section 5.2), no first and last layers copied from the teacher (table 5).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import kdkernels as kd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Unpack

from python_trainers.common.checks import require_at_least, require_not_negative, require_positive
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch
from python_trainers.common.errors import require
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.loop import Loss, Objective, all_processes
from python_trainers.common.metrics import means_over
from python_trainers.common.options import refuse_accumulation
from python_trainers.common.seeding import derived_seed
from python_trainers.common.teacher import Pretraining, TaughtOptions, Teacher
from python_trainers.presets.born_again import PRESETS


@dataclass(frozen=True)
class Args(TaughtOptions):
    """Options of the method; where no source is given, defaults are ours."""

    model: str = "small_convnet"  # of generation 0, which --teacher holds if it is given
    student_model: str | None = None  # of the generations born again; None: the same (section 4.3 has others)
    generations: int = 3  # born again; table 2 has up to 3
    loss: Literal["ban", "ban+l", "cwtm", "dkpp"] = "ban"  # section 3
    label_weight: float = 1.0  # of ban+l
    teacher_weight: float = 1.0  # of ban+l
    scope: Literal["sample", "batch", "fixed"] = "sample"  # dkpp: what shares a permutation; fixed: all
    normalise: bool = True  # cwtm: confidences are divided by their mean (equation 10)
    temperature: float = 1.0  # an extension, see deviation 5

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.model, self.student_model or self.model)

    def check(self) -> None:
        super().check()
        require_at_least(self, 1, "generations")
        require_positive(self, "temperature")
        require_not_negative(self, "label_weight", "teacher_weight")
        weight = self.label_weight + self.teacher_weight
        require(weight > 0, "--label-weight and --teacher-weight must not both be 0")
        if self.loss == "cwtm" and self.normalise:
            refuse_accumulation(self, "confidences are divided by their mean over the whole batch")

    def smoked(self) -> "Args":
        return replace(super().smoked(), generations=min(self.generations, 2))

    def completed(self) -> "Args":
        return replace(self, student_model=self.student_model or self.model)

    def pretraining(self) -> Pretraining:
        """Generation 0: the images and the recipe of its descendants."""
        return Pretraining(self.model, self.epochs, few=True)

    def on_pair(self, teacher: str, student: str, teacher_epochs: int) -> "Args":
        """The student's architecture is its own teacher's."""
        return replace(self, model=student)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "born_again", Args, train, argv, "Born-again networks (Furlanello et al. 2018).", PRESETS
    )


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train what is missing of all generations.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` is a function that returns a new module
    for each generation, ``teacher`` a module that is generation 0. Returns what summary.json of the last holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("born_again", args, **objects)
    args, folder, accelerator = experiment.args, experiment.folder, experiment.accelerator
    experiment.student.require_again("each generation starts from new weights")
    generations = [experiment.teacher("generation-0")]

    def accuracies(last: nn.Module) -> dict[str, float]:
        """Test accuracy of the generations before the last, and of the last two and three together."""
        networks = [*(generation.network for generation in generations), last.eval()]
        return {
            **{f"generation_{k}": teacher.test_accuracy for k, teacher in enumerate(generations)},
            **{f"ensemble_{n}": together(networks[-n:], experiment) for n in (2, 3) if n <= len(networks)},
        }

    for k in range(1, args.generations + 1):
        last = k == args.generations
        network, summary, _ = experiment.train_student(
            learn_from(generations[-1], args, experiment.dataset.classes, accelerator),
            teacher=generations[-1],
            losses={"loss": args.loss},
            folder=folder if last else folder / f"generation-{k}",
            seed=derived_seed(args.seed, "generation", k),
            identity={"generation": k},
            figures=accuracies if last else None,
        )
        generations.append(Teacher(network, summary["figures"]["test_accuracy"], accelerator))
    return summary


def learn_from(teacher: Teacher, args: Args, classes: int, accelerator: Accelerator) -> Objective:
    """The loss that ``--loss`` names."""
    temperature = args.temperature
    generator = torch.Generator().manual_seed(args.seed)
    fixed_order = torch.randperm(classes - 1, generator=generator, device="cpu").to(accelerator.device)

    def ban(model: nn.Module, batch: Batch) -> Loss:
        return kd.softened_kl(model(batch.pixels), teacher(batch.pixels), temperature=temperature), {}

    def ban_with_labels(model: nn.Module, batch: Batch) -> Loss:
        return kd.kd_loss(
            model(batch.pixels),
            teacher(batch.pixels),
            batch.labels,
            temperature=temperature,
            ce_weight=args.label_weight,
            kl_weight=args.teacher_weight,
            return_parts=True,
        )

    def cwtm(model: nn.Module, batch: Batch) -> Loss:
        logits, taught = model(batch.pixels), teacher(batch.pixels)
        group = all_processes(accelerator)
        return kd.cwtm_loss(logits, batch.labels, taught, normalize=args.normalise, group=group), {}

    def dkpp(model: nn.Module, batch: Batch) -> Loss:
        logits, taught = model(batch.pixels), teacher(batch.pixels)
        permutation = None  # drawn for every sample
        if args.scope != "sample":
            fixed = args.scope == "fixed"
            order = fixed_order if fixed else torch.randperm(classes - 1, device="cpu").to(logits.device)
            permutation = permute_others(taught.argmax(-1), order)
        return kd.dkpp_loss(logits, taught, permutation=permutation, temperature=temperature), {}

    return {"ban": ban, "ban+l": ban_with_labels, "cwtm": cwtm, "dkpp": dkpp}[args.loss]


def permute_others(kept: Tensor, order: Tensor) -> Tensor:
    """One permutation for many rows: class ``kept`` [N] of a row stays, the others follow ``order`` [C - 1].

    Returns int64 [N, C]; ``order`` permutes the numbers 0 to C - 2 that the others have among themselves.
    """
    classes, kept = torch.arange(len(order) + 1, device=order.device), kept.unsqueeze(-1)
    number = classes - (classes > kept).long()
    moved = order[number.clamp(max=len(order) - 1)]
    return torch.where(classes == kept, kept, moved + (moved >= kept).long())


def together(networks: Sequence[nn.Module], experiment: Experiment) -> float:
    """Share of the test images that the networks' mean probabilities, in float32, get right (section 4.2)."""

    def figures(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = torch.stack([network(pixels).float() for network in networks], dim=1)
        return {"correct": kd.mean_probabilities(logits).argmax(-1) == labels}

    images, batch_size = experiment.task.splits["test"], experiment.task.batch_size
    return means_over(images, figures, experiment.accelerator, batch_size)["correct"].item()


if __name__ == "__main__":
    sys.exit(main())
