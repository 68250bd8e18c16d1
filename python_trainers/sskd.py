"""Knowledge distillation meets self-supervision: rotated images tell what the teacher's answers do not.

G. Xu, Z. Liu, X. Li, C. C. Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020,
https://arxiv.org/abs/2006.07114; code by the authors: https://github.com/xuguodong03/SSKD. Every image is
shown four times, turned by 0, 90, 180 and 270 degrees. Beside both networks stands a head (linear, ReLU,
linear) on the layer before the classifier; A [3 B, B] holds the cosines of its outputs for the 3 B rotated
rows of a batch with those for the B upright ones.

    1. the teacher is frozen, its head learns which image a rotated row was (row j was image j // 3):
           loss = CE(A, j // 3)
    2. the student and its head learn
           loss = ce_weight * CE(upright, label) + kl_weight * KL(upright)
                + rotated_weight * KL(rotated rows) + similarity_weight * KL(A of teacher || A of student)
       each KL times its T^2. Of the rotated rows on which the teacher errs, in the class for the one, in the
       image for the other, only the share --rotated-ratio and --similarity-ratio is kept, the least wrong.

    python -m python_trainers.sskd --train-images 50 --out out/sskd
    python -m python_trainers.sskd --preset cifar100-code-resnet32x4-shufflenetv1 --data-root DIR

Reproduced: rotated copies are worth something where images are few. From 50 images of digits, over 8 seeds
and each at its best learning rate (mean and sample standard deviation; docs/results/sskd.md): 83.8 +- 2.5 %
from labels alone, 89.6 +- 1.2 % by kd, 93.1 +- 2.0 % by sskd, by seed 3.5 +- 1.9 above kd.

metrics.jsonl has the four terms and, as ``kept_rotated`` and ``kept_similarity``, the shares of rotated rows
that the two selections left. The head lies in the teacher's folder; it follows from the teacher and the
head's recipe alone, so all students of a teacher share it.

Deviations from the paper:
1. Data, networks, recipe: digits, small networks and kd's recipe by default; presets have the authors'.
   Turned by 180 degrees a 6 is a 9: some of what L_rotated teaches here is wrong.
2. Rotations alone, as in the official code; the paper adds colour dropping, crops and colour distortion.
3. Weights are the code's; those of arXiv's text and of ECCV's supplement are presets, see there.
4. KL where the paper writes cross entropies, mean where it sums: as in the code, the gradient is the same.
5. Of rows of equal rank the first are kept; the code's sort is not stable. If no row is kept a term is 0.
6. The last epoch is reported; the authors report the best on the test set.
7. The teacher's head learns from the whole training split, as the teacher, however few the student sees.
8. Of photographs in files the random part is drawn once per image, not for each of its four copies.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import kdkernels as kd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Unpack

from python_trainers.common.checkpoint import fingerprint, is_weights_file
from python_trainers.common.checks import (
    require_at_least,
    require_milestones,
    require_not_negative,
    require_positive,
    require_share,
)
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch, Dataset
from python_trainers.common.data.rotations import TURNS, FourRotations
from python_trainers.common.errors import require
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.gather import whole_batch
from python_trainers.common.learner import Learner
from python_trainers.common.loop import Loss, Objective
from python_trainers.common.options import SMOKE_EPOCHS, refuse_accumulation
from python_trainers.common.seeding import make_reproducible
from python_trainers.common.stages import numbered_folder, stage
from python_trainers.common.teacher import Teacher, TeacherOptions
from python_trainers.presets.sskd import PRESETS

HEAD_SEED = 0  # of every teacher's head, so that it does not depend on the student that asks for it first


@dataclass(frozen=True)
class Args(TeacherOptions):
    """Options of the method; where no other source is given, defaults are the official code's."""

    ce_weight: float = 0.1  # of the cross entropy with the labels, upright rows alone
    kl_weight: float = 0.9  # of the KL on upright rows
    rotated_weight: float = 2.7  # of the KL on rotated rows (L_T); arXiv: 10, ECCV's supplement: 5
    similarity_weight: float = 10.0  # of the KL between similarities (L_ss); arXiv: 2.7, supplement: 3
    temperature: float = 4.0  # of the KL on upright rows
    rotated_temperature: float = 4.0  # of the KL on rotated rows
    similarity_temperature: float = 0.5  # of the KL between similarities
    rotated_ratio: float = 1.0  # share of the rows of a wrong class that L_T keeps
    similarity_ratio: float = 0.75  # share of the rows of a wrong image that L_ss keeps; table 1: best
    head_epochs: int = 20  # of the teacher's head; 60 there, ours for digits
    head_learning_rate: float = 0.05  # at the start; under the same schedule
    head_milestones: tuple[int, ...] = (30, 45)  # epochs after which it is multiplied by --decay
    batch_size: int = 64  # images, over all processes: four times as many rows

    def check(self) -> None:
        super().check()
        require_milestones(self, "head_milestones")
        require_at_least(self, 1, "head_epochs")
        require_positive(self, "head_learning_rate")
        require_positive(self, "temperature", "rotated_temperature", "similarity_temperature")
        require_not_negative(self, "ce_weight", "kl_weight", "rotated_weight", "similarity_weight")
        require_share(self, "rotated_ratio", "similarity_ratio")
        refuse_accumulation(self, "rows are compared with all others of the batch")

    def smoked(self) -> "Args":
        return replace(super().smoked(), head_epochs=SMOKE_EPOCHS)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "sskd", Args, train, argv, "Distillation meets self-supervision (Xu et al. 2020).", PRESETS
    )


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train the student, before it teacher and teacher's head if they are not yet.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` and ``teacher`` are modules whose
    features can be read, see ``Tapped``; the student is trained in place, the teacher is frozen. Images are
    square. Returns what summary.json holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("sskd", args, **objects)
    check_square(experiment.dataset)
    experiment.student.require_features()
    teacher = experiment.teacher()
    experiment.augment(FourRotations.of(experiment.dataset.augmentation))
    head = obtain_head(teacher, experiment)
    return experiment.train_student(
        learn_from(teacher, head, args, experiment.accelerator),
        teacher=teacher,
        learner=Student,
        identity={"teacher_head": fingerprint(head)},
        losses={
            "loss": "total",
            "kl": "$T^2$ KL, upright",
            "kl_rotated": "$T^2$ KL, rotated",
            "similarity": "$T^2$ KL, similarities",
        },
    ).summary


class Student(Learner):
    """The student and its head: images [N, ...] to logits [N, classes] and head outputs [N, features]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, projection_head(network.num_features))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network.with_features(pixels)
        return logits, self.beside(features)


def projection_head(width: int) -> nn.Sequential:
    """From the layer before the classifier to what is compared, as wide."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def obtain_head(teacher: Teacher, experiment: Experiment) -> nn.Module:
    """The teacher's head, frozen; trained in a folder beside the teacher's if it is not yet.

    Its first weights and batches do not depend on --seed: whichever student comes first, the head is the same.
    """
    args, dataset, accelerator = experiment.args, experiment.dataset, experiment.accelerator
    recipe = replace(
        args,
        epochs=args.head_epochs,
        learning_rate=args.head_learning_rate,
        milestones=args.head_milestones,
        train_images=None,
        train_fraction=None,
        noisy_labels=0.0,  # it sees no labels
        model_ema_decay=0.0,
        keep="last",
    )
    name = f"projection head of {teacher.name}"
    configuration = {
        "epochs": recipe.epochs,
        **experiment.configuration(recipe),
        "seed": HEAD_SEED,
        "teacher": fingerprint(teacher.network),
    }
    at_teacher = args.teacher is not None and not is_weights_file(args.teacher)
    home = args.teacher if at_teacher else experiment.folder / "teacher"
    folder = numbered_folder(home / "head", configuration)
    run = experiment.run(folder, name, configuration, epochs=recipe.epochs)
    make_reproducible(HEAD_SEED, dataset.cpu_threads, deterministic=args.deterministic)
    head = projection_head(teacher.network.num_features)

    def learn() -> dict[str, Any]:
        objective, tracked = tell_images_apart(teacher, accelerator), {"model": head}
        experiment.learn(run, recipe, dataset.train, objective, head, tracked, seed=HEAD_SEED)
        return {"train_images": len(dataset.train)}

    stage(run, {"model": head}, learn)
    return head.to(accelerator.device).eval().requires_grad_(False)


def tell_images_apart(teacher: Teacher, accelerator: Accelerator) -> Objective:
    """Stage 1; ``nearest`` is the share of rotated rows nearest to their own image."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        features, _ = teacher.with_features(batch.pixels)
        upright, rotated = split(model(features), accelerator)
        image = image_of(rotated)
        loss = kd.info_nce(rotated, upright, image, temperature=1.0)
        rank = kd.similarity_rank(rotated.detach(), upright.detach(), image)
        return loss, {"nearest": (rank == 0).float().mean()}

    return objective


def learn_from(teacher: Teacher, head: nn.Module, args: Args, accelerator: Accelerator) -> Objective:
    """Stage 2; the loss is that of the whole batch in every process."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        logits, compared = (split(rows, accelerator) for rows in model(batch.pixels))
        (upright, rotated), (upright_compared, rotated_compared) = logits, compared
        features, taught = teacher.with_features(batch.pixels)
        with torch.no_grad(), accelerator.autocast():
            taught_upright_compared, taught_rotated_compared = split(head(features), accelerator)
        taught_upright, taught_rotated = split(taught, accelerator)
        labels, image = whole_batch(batch.labels, accelerator), image_of(rotated)

        loss, parts = kd.kd_loss(
            upright,
            taught_upright,
            labels,
            temperature=args.temperature,
            ce_weight=args.ce_weight,
            kl_weight=args.kl_weight,
            return_parts=True,
        )
        right_class = kd.select_trusted_rows(kd.logit_rank(taught_rotated, labels[image]), args.rotated_ratio)
        kl_rotated = kd.softened_kl(
            rotated, taught_rotated, temperature=args.rotated_temperature, mask=right_class
        )
        rank = kd.similarity_rank(taught_rotated_compared, taught_upright_compared, image)
        right_image = kd.select_trusted_rows(rank, args.similarity_ratio)
        similarity = kd.similarity_kl(
            rotated_compared,
            upright_compared,
            taught_rotated_compared,
            taught_upright_compared,
            temperature=args.similarity_temperature,
            mask=right_image,
        )
        loss = loss + args.rotated_weight * kl_rotated + args.similarity_weight * similarity
        return loss, {
            **parts,
            "kl_rotated": kl_rotated,
            "similarity": similarity,
            "kept_rotated": right_class.float().mean(),
            "kept_similarity": right_image.float().mean(),
        }

    return objective


def split(rows: Tensor, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Upright rows [B, ...] and rotated rows [3 B, ...] of the whole batch; ``rows`` are this process's."""
    images = whole_batch(rows.unflatten(0, (-1, TURNS)), accelerator)
    return images[:, 0], images[:, 1:].flatten(0, 1)


def image_of(rotated: Tensor) -> Tensor:
    """Which image each of the rotated rows [3 B, ...] was: int64 [3 B]."""
    return torch.arange(len(rotated), device=rotated.device) // (TURNS - 1)


def check_square(dataset: Dataset) -> None:
    """Refuse images that turned by 90 degrees have another shape."""
    _, height, width = dataset.image_shape
    require(
        height == width,
        f"sskd turns images by 90 degrees: they must be square, those of {dataset.name} are "
        f"{height}x{width}; cut them first",
    )


if __name__ == "__main__":
    sys.exit(main())
