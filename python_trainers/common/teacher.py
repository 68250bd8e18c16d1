"""Teachers: networks trained from labels alone, kept in a folder that runs can share, then frozen."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.checkpoint import fingerprint
from python_trainers.common.checks import require_at_least, require_not_negative, require_positive
from python_trainers.common.data import Dataset, Images
from python_trainers.common.fit import fit, learn_from_labels
from python_trainers.common.models import require_network
from python_trainers.common.options import StudentOptions, data_configuration
from python_trainers.common.recipe import recipe_configuration
from python_trainers.common.run import Run, is_finished, load_trained

OWN_RECIPE = ("learning_rate", "batch_size", "weight_decay")  # in which a teacher's may differ


@dataclass(frozen=True)
class TaughtOptions(StudentOptions):
    """Options of a run that learns from a trained network."""

    teacher: Path | None = None  # folder of a run, trained there if absent, or a .pt file; None: under OUT

    def recipe_of(self, plan: "Pretraining") -> "TaughtOptions":
        """The options under which the network of ``plan`` is trained."""
        return replace(self, epochs=plan.epochs)


@dataclass(frozen=True)
class TeacherOptions(TaughtOptions):
    """The same, with a network of its own for the teacher."""

    teacher_model: str = "small_resnet"  # a --teacher of another network is refused
    teacher_epochs: int = 40  # of the teacher's training, if it is not trained yet
    teacher_learning_rate: float | None = None  # of its training; None, here and below: the student's
    teacher_batch_size: int | None = None
    teacher_weight_decay: float | None = None
    student_model: str = "small_convnet"  # 1,898 weights on digits, an 80th of the default teacher's

    def on_pair(self, teacher: str, student: str, teacher_epochs: int) -> "TeacherOptions":
        """The options with the networks of a comparison."""
        return replace(self, teacher_model=teacher, student_model=student, teacher_epochs=teacher_epochs)

    def recipe_of(self, plan: "Pretraining") -> "TeacherOptions":
        """The same; a network that the student itself was before has the student's recipe."""
        given = {} if plan.few else {name: getattr(self, f"teacher_{name}") for name in OWN_RECIPE}
        own = {name: value for name, value in given.items() if value is not None}
        return replace(self, epochs=plan.epochs, **own)


@dataclass(frozen=True)
class Pretraining:
    """What decides a teacher's weights, beside the data, seed and recipe of the run that asks for it."""

    network: str
    epochs: int
    few: bool  # as the student: on its images, by its recipe; False: on the whole split, by the teacher's own


class Teacher:
    """A frozen network: images [N, channels, height, width] in, logits [N, classes] out, without gradient."""

    def __init__(self, network: nn.Module, test_accuracy: float, accelerator: Accelerator) -> None:
        self.network = network.to(accelerator.device).eval().requires_grad_(False)
        self.test_accuracy = test_accuracy
        self._autocast = accelerator.autocast

    def __call__(self, pixels: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.network(pixels)

    def features_and_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the classifier, [N, num_features], and the logits [N, classes], without gradient."""
        with torch.no_grad(), self._autocast():
            features = self.network.forward_features(pixels)
            return features, self.network.head(features)

    @property
    def figures(self) -> dict[str, Any]:
        """What a summary says of it."""
        return {"teacher_accuracy": self.test_accuracy, "teacher_fingerprint": fingerprint(self.network)}


def check_networks(args: TeacherOptions) -> None:
    """Refuse networks that cannot be built or trained."""
    require_at_least(args, 1, "teacher_epochs")
    if args.teacher_learning_rate is not None:
        require_positive(args, "teacher_learning_rate")
    if args.teacher_batch_size is not None:
        require_at_least(args, 1, "teacher_batch_size")
    if args.teacher_weight_decay is not None:
        require_not_negative(args, "teacher_weight_decay")
    require_network(args.teacher_model)
    require_network(args.student_model)


def obtain_teacher(
    pretraining: Pretraining,
    args: TaughtOptions,
    folder: Path,  # where it is kept if there is no --teacher
    dataset: Dataset,
    images: Images,  # the student's
    accelerator: Accelerator,
) -> Teacher:
    """The teacher that ``--teacher`` names, else the one under ``folder``; trained there if it is not yet."""
    path = args.teacher or folder
    if args.teacher is not None and (path.suffix == ".pt" or is_finished(path)):
        network, test_accuracy = load_trained(path, pretraining.network, dataset)
        return Teacher(network, test_accuracy, accelerator)
    if not pretraining.few:
        args, images = replace(args, train_images=None, train_fraction=None), dataset.train
    recipe = args.recipe_of(pretraining)
    configuration = {**data_configuration(args, dataset), "seed": args.seed, **recipe_configuration(recipe)}
    run = Run(path, pretraining.network, configuration, epochs=pretraining.epochs, accelerator=accelerator)
    network = fit(run, recipe, dataset, images, learn_from_labels, seed=args.seed)
    summary = run.finish(train_images=len(images), test_images=len(dataset.test))
    return Teacher(network, summary["figures"]["test_accuracy"], accelerator)
