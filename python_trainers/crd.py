"""Contrastive representation distillation: the student's view of an image must single out the teacher's.

Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020,
https://arxiv.org/abs/1910.10699; code by the authors: https://github.com/HobbitLong/RepDistiller. Beside
the networks stand two linear heads, both trained, and two memory banks with the embeddings of every training
image, one by the student, one by the teacher. An embedding is set against the other network's of the same
image, the positive, and of K images of other classes, both ways round (NCE, summed over both):

    loss = ce_weight * CE + kl_weight * T^2 KL(teacher || student) + crd_weight * NCE

    python -m python_trainers.crd --out out/crd
    python -m python_trainers.crd --kl-weight 1 --out out/crd-kd  # and plain distillation
    python -m python_trainers.crd --preset cifar100-crd-resnet32x4-resnet8x4 --data-root DIR

Not reproduced: on 50 images of digits, where an image has 45 negatives, over 8 seeds and each at its best
learning rate, CRD gains 2.1 +- 2.2 points over labels alone and kd 5.8 +- 1.7, no more with CRD beside it
(docs/results/crd.md). Seconds per student on one CPU core.

The banks, heads and normalisers are in the checkpoint. Memory: two banks of n_data x --embed-dim floats.

Deviations from the paper:
1. Data, networks, recipe: digits, small networks and kd's recipe by default; presets have the authors'.
2. As in the official code: scores are divided by a normaliser that the first batch fixes, eps = 1e-7 is
   added to the noise, and the contrast temperature is 0.07 everywhere (paper: 0.1 on CIFAR).
3. With fewer than 16,384 images of other classes K is as many as the largest class leaves.
4. Negatives of more than 100,000 images are drawn with replacement, as the authors do for ImageNet.
5. With wrong labels, "other classes" are those of the wrong labels.
6. No object-correlation or other losses of the authors' benchmark.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import kdkernels as kd
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Unpack

from python_trainers.common.checks import require_at_least, require_not_negative, require_positive
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch, require_numbers
from python_trainers.common.data.contrasts import Contrasts
from python_trainers.common.errors import require
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.gather import whole_batch
from python_trainers.common.learner import Learner
from python_trainers.common.loop import Loss, Objective
from python_trainers.common.options import refuse_accumulation
from python_trainers.common.teacher import Teacher, TeacherOptions
from python_trainers.presets.crd import PRESETS


@dataclass(frozen=True)
class Args(TeacherOptions):
    """Options of the method; where no other source is given, defaults are the official code's."""

    ce_weight: float = 1.0  # gamma
    kl_weight: float = 0.0  # alpha; 1: CRD+KD
    crd_weight: float = 0.8  # beta; 0: no banks, plain distillation
    temperature: float = 4.0  # of the KL
    embed_dim: int = 128  # width of the embeddings
    negatives: int | None = None  # K; None: 16,384, or what the largest class leaves if that is less
    positive: Literal["exact", "relax"] = "exact"  # the image itself, or any image of its class
    contrast_temperature: float = 0.07  # of the scores
    bank_momentum: float = 0.5  # share of an embedding in the bank that stays when its image comes by
    batch_size: int = 64  # over all processes

    def check(self) -> None:
        super().check()
        require_positive(self, "temperature", "contrast_temperature")
        require_not_negative(self, "ce_weight", "kl_weight", "crd_weight")
        weight = self.ce_weight + self.kl_weight + self.crd_weight
        require(weight > 0, "--ce-weight, --kl-weight and --crd-weight must not all be 0")
        require(
            0 <= self.bank_momentum < 1, f"--bank-momentum must be >= 0 and < 1, got {self.bank_momentum}"
        )
        require_at_least(self, 1, "embed_dim")
        if self.negatives is not None:
            require_at_least(self, 1, "negatives")
        if self.crd_weight > 0:
            refuse_accumulation(self, "a batch must not meet its own embeddings in the banks")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "crd", Args, train, argv, "Contrastive representation distillation (Tian et al. 2020).", PRESETS
    )


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train the student, and before it the teacher if there is none yet.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` and ``teacher`` are modules whose
    features can be read, see ``Tapped``; the student is trained in place, the teacher is frozen. The training
    data are a Dataset, since the banks know images by their numbers. Returns what summary.json holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("crd", args, **objects)
    accelerator, images = experiment.accelerator, experiment.images
    if args.crd_weight > 0:
        require_numbers(images, "crd's memory banks")
        experiment.student.require_features()
    teacher, contrasts, learner = experiment.teacher(), None, None
    losses = {"loss": "total", "ce": "cross entropy", "kl": "$T^2$ KL"}
    if args.crd_weight > 0:
        labels, relax = images.labels.to(accelerator.device), args.positive == "relax"
        contrasts = Contrasts(labels, experiment.dataset.classes, args.negatives, relax=relax)
        args = experiment.complete(negatives=contrasts.negatives)
        learner = partial(Student, teacher=teacher, images=len(images), args=args)
        losses["crd"] = "contrastive"
    return experiment.train_student(
        learn_from(teacher, contrasts, args, accelerator), teacher=teacher, learner=learner, losses=losses
    ).summary


class Student(Learner):
    """The student with heads and banks, which are kept equal in all processes."""

    def __init__(self, network: nn.Module, *, teacher: Teacher, images: int, args: Args) -> None:
        criterion = kd.nn.CRDLoss(
            network.num_features,
            teacher.network.num_features,
            images,
            embed_dim=args.embed_dim,
            negatives=args.negatives,
            temperature=args.contrast_temperature,
            momentum=args.bank_momentum,
        )
        super().__init__(network, criterion)

    def forward(
        self,
        pixels: Tensor,  # [N, channels, height, width]
        taught: Tensor,  # [N, features] of the teacher
        index: Tensor,  # [N] int64
        contrast: Tensor,  # [N, K + 1] int64
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits [N, classes], the contrastive loss and its two directions."""
        features, logits = self.network.with_features(pixels)
        loss, parts = self.beside(features, taught, index, contrast, return_parts=True)
        return logits, loss, parts


def learn_from(
    teacher: Teacher, contrasts: Contrasts | None, args: Args, accelerator: Accelerator
) -> Objective:
    """The loss of the paper; without ``contrasts`` plain distillation."""
    mine = slice(accelerator.process_index, None, accelerator.num_processes)

    def distil(logits: Tensor, taught: Tensor, batch: Batch) -> Loss:
        return kd.kd_loss(
            logits,
            taught,
            batch.labels,
            temperature=args.temperature,
            ce_weight=args.ce_weight,
            kl_weight=args.kl_weight,
            return_parts=True,
        )

    def plain(model: nn.Module, batch: Batch) -> Loss:
        return distil(model(batch.pixels), teacher(batch.pixels), batch)

    def contrastive(model: nn.Module, batch: Batch) -> Loss:
        features, taught = teacher.with_features(batch.pixels)
        # Drawn for the whole batch, so that the generators of all processes stay equal.
        contrast = contrasts.draw(whole_batch(batch.index, accelerator))[mine]
        logits, crd, directions = model(batch.pixels, features, batch.index, contrast)
        loss, parts = distil(logits, taught, batch)
        by_direction = {f"crd_{name}": part for name, part in directions.items()}
        return loss + args.crd_weight * crd, {**parts, "crd": crd, **by_direction}

    return plain if contrasts is None else contrastive


if __name__ == "__main__":
    sys.exit(main())
