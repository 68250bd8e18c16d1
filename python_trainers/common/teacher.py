"""Teachers: frozen networks, and the options of runs that learn from one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.checkpoint import fingerprint
from python_trainers.common.checks import require_at_least, require_not_negative, require_positive
from python_trainers.common.options import SMOKE_EPOCHS, StudentOptions

OWN_RECIPE = ("learning_rate", "batch_size", "weight_decay")  # in which a teacher's may differ


@dataclass(frozen=True)
class Pretraining:
    """What decides a teacher's weights, beside the data, seed and recipe of the run that asks for it."""

    network: str
    epochs: int
    few: bool  # as the student: on its images, by its recipe; False: on the whole split, by the teacher's own


@dataclass(frozen=True)
class TaughtOptions(StudentOptions):
    """Options of a run that learns from a trained network."""

    teacher: Path | None = None  # folder of a run, trained there if absent, or a file of weights; None: under OUT

    def recipe_of(self, plan: Pretraining) -> "TaughtOptions":
        """The options under which the network of ``plan`` is trained."""
        images = {} if plan.few else {"train_images": None, "train_fraction": None}
        return replace(self, epochs=plan.epochs, **images)


@dataclass(frozen=True)
class TeacherOptions(TaughtOptions):
    """The same, with a network of its own for the teacher."""

    teacher_model: str = "small_resnet"  # a --teacher of another network is refused
    teacher_epochs: int = 40  # of the teacher's training, if it is not trained yet
    teacher_learning_rate: float | None = None  # of its training; None, here and below: the student's
    teacher_batch_size: int | None = None
    teacher_weight_decay: float | None = None

    def check(self) -> None:
        super().check()
        require_at_least(self, 1, "teacher_epochs")
        if self.teacher_learning_rate is not None:
            require_positive(self, "teacher_learning_rate")
        if self.teacher_batch_size is not None:
            require_at_least(self, 1, "teacher_batch_size")
        if self.teacher_weight_decay is not None:
            require_not_negative(self, "teacher_weight_decay")

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.teacher_model, self.student_model)

    def smoked(self) -> "TeacherOptions":
        return replace(super().smoked(), teacher_epochs=SMOKE_EPOCHS)

    def pretraining(self) -> Pretraining | None:
        """The teacher: on the whole training split, whatever the student sees."""
        return Pretraining(self.teacher_model, self.teacher_epochs, few=False)

    def on_pair(self, teacher: str, student: str, teacher_epochs: int) -> "TeacherOptions":
        return replace(self, teacher_model=teacher, student_model=student, teacher_epochs=teacher_epochs)

    def recipe_of(self, plan: Pretraining) -> "TeacherOptions":
        """The same; a network that the student itself was before has the student's recipe."""
        given = {} if plan.few else {name: getattr(self, f"teacher_{name}") for name in OWN_RECIPE}
        own = {name: value for name, value in given.items() if value is not None}
        return replace(super().recipe_of(plan), **own)


class Teacher:
    """A frozen network: images [N, channels, height, width] in, logits [N, classes] out, without gradient."""

    def __init__(
        self, network: nn.Module, test_accuracy: float, accelerator: Accelerator, name: str = ""
    ) -> None:
        self.name = name  # what a checkpoint calls the network
        self.network = network.to(accelerator.device).eval().requires_grad_(False)
        self.test_accuracy = test_accuracy
        self._autocast = accelerator.autocast

    def __call__(self, pixels: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.network(pixels)

    def with_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the classifier, [N, num_features], and the logits [N, classes], without gradient."""
        with torch.no_grad(), self._autocast():
            return self.network.with_features(pixels)

    @property
    def figures(self) -> dict[str, Any]:
        """What a summary says of it."""
        return {"teacher_accuracy": self.test_accuracy, "teacher_fingerprint": fingerprint(self.network)}
