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

Reproduced: rotated copies are worth something where images are few. From 50 images of digits,
over 3 seeds (mean and sample standard deviation; docs/results/sskd.md): 81.2 +- 2.1 % from labels alone, 88.9
+- 1.0 % by kd, 91.6 +- 2.6 % by sskd.

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

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import kdkernels as kd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.checkpoint import checkpoint_path, fingerprint, load_checkpoint
from python_trainers.common.checks import (
    require_at_least,
    require_milestones,
    require_not_negative,
    require_positive,
    require_share,
    select,
)
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch, Dataset
from python_trainers.common.data.rotations import TURNS, FourRotations
from python_trainers.common.errors import require
from python_trainers.common.fit import Loss, Objective, optimise
from python_trainers.common.gather import whole_batch
from python_trainers.common.learner import Learner
from python_trainers.common.models.network import Network
from python_trainers.common.options import data_configuration, load_data
from python_trainers.common.recipe import SMOKE_EPOCHS, check_recipe, recipe_configuration
from python_trainers.common.run import Run, is_finished
from python_trainers.common.seeding import make_reproducible
from python_trainers.common.student import train_student
from python_trainers.common.teacher import (
    Pretraining,
    Teacher,
    TeacherOptions,
    check_networks,
    obtain_teacher,
)
from python_trainers.presets.sskd import PRESETS

HEAD_SEED = 0  # of every teacher's head, so that it does not depend on the student that asks for it first
LOSS_OPTIONS = (
    "temperature",
    "rotated_temperature",
    "similarity_temperature",
    "ce_weight",
    "kl_weight",
    "rotated_weight",
    "similarity_weight",
    "rotated_ratio",
    "similarity_ratio",
)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "sskd", Args, train, argv, "Distillation meets self-supervision (Xu et al. 2020).", PRESETS
    )


def pretraining(args: Args) -> Pretraining:
    """The teacher: on the whole training split, upright, whatever the student sees."""
    return Pretraining(args.teacher_model, args.teacher_epochs, few=False)


def train(args: Args) -> dict[str, Any]:
    """Train the student, before it teacher and teacher's head if they are not yet; returns the summary."""
    check(args)
    if args.smoke:
        args = replace(args, epochs=SMOKE_EPOCHS, teacher_epochs=SMOKE_EPOCHS, head_epochs=SMOKE_EPOCHS)
    folder, accelerator = args.folder("sskd"), Accelerator()
    dataset, images = load_data(args, seed=args.seed)
    check_square(dataset)
    own = folder / "teacher"
    teacher = obtain_teacher(pretraining(args), args, own, dataset, images, accelerator)
    dataset = replace(dataset, augmentation=FourRotations(**asdict(dataset.augmentation)))
    at_teacher = own if args.teacher is None or args.teacher.suffix == ".pt" else args.teacher
    head = obtain_head(teacher, args, at_teacher, dataset, accelerator)
    _, summary = train_student(
        folder,
        args.student_model,
        args,
        dataset,
        images,
        teacher,
        learn_from(teacher, head, args, accelerator),
        accelerator,
        method={**select(args, *LOSS_OPTIONS), "teacher_head": fingerprint(head)},
        losses={
            "loss": "total",
            "kl": "$T^2$ KL, upright",
            "kl_rotated": "$T^2$ KL, rotated",
            "similarity": "$T^2$ KL, similarities",
        },
        seed=args.seed,
        learner=Student,
    )
    return summary


class Student(Learner):
    """The student and its head: images [N, ...] to logits [N, classes] and head outputs [N, features]."""

    def __init__(self, network: Network) -> None:
        super().__init__(network, projection_head(network.num_features))

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.forward_features(pixels)
        return self.network.head(features), self.beside(features)


def projection_head(width: int) -> nn.Sequential:
    """From the layer before the classifier to what is compared, as wide."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def obtain_head(
    teacher: Teacher,
    args: Args,
    folder: Path,  # the teacher's
    dataset: Dataset,  # whose batches are four rotations
    accelerator: Accelerator,
) -> nn.Module:
    """The teacher's head, frozen; trained in a folder below ``folder`` if it is not yet.

    That folder's name follows from the teacher and the head's recipe; first weights and batches do not depend
    on --seed: whichever student comes first, the head is the same.
    """
    recipe = replace(
        args,
        epochs=args.head_epochs,
        learning_rate=args.head_learning_rate,
        milestones=args.head_milestones,
        train_images=None,
        train_fraction=None,
        noisy_labels=0.0,  # it sees no labels
    )
    configuration = {
        **data_configuration(recipe, dataset),
        **recipe_configuration(recipe),
        "seed": HEAD_SEED,
        "teacher": fingerprint(teacher.network),
    }
    identity = json.dumps({**configuration, "epochs": recipe.epochs}, sort_keys=True)
    folder = folder / f"head-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    make_reproducible(HEAD_SEED, dataset.cpu_threads)
    head = projection_head(teacher.network.num_features)
    if is_finished(folder):
        head.load_state_dict(load_checkpoint(checkpoint_path(folder))["tracked"]["model"])
    else:
        name = f"projection head of {args.teacher_model}"
        run = Run(folder, name, configuration, epochs=recipe.epochs, accelerator=accelerator)
        optimise(
            run,
            recipe,
            dataset,
            dataset.train,
            head,
            tell_images_apart(teacher, accelerator),
            seed=HEAD_SEED,
            tracked={"model": head},
        )
        run.finish(train_images=len(dataset.train))
    return head.to(accelerator.device).eval().requires_grad_(False)


def tell_images_apart(teacher: Teacher, accelerator: Accelerator) -> Objective:
    """Stage 1; ``nearest`` is the share of rotated rows nearest to their own image."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        features, _ = teacher.features_and_logits(batch.pixels)
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
        features, taught = teacher.features_and_logits(batch.pixels)
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


def check(args: Args) -> None:
    """Refuse, before anything is trained, what would fail later or train nothing."""
    check_recipe(args)
    check_networks(args)
    require_milestones(args, "head_milestones")
    require_at_least(args, 1, "head_epochs")
    require_positive(args, "head_learning_rate")
    require_positive(args, "temperature", "rotated_temperature", "similarity_temperature")
    require_not_negative(args, "ce_weight", "kl_weight", "rotated_weight", "similarity_weight")
    require_share(args, "rotated_ratio", "similarity_ratio")
    require_at_least(args, 0, "seed")


if __name__ == "__main__":
    sys.exit(main())
