"""Options that trainers share, in groups: a method's ``Args`` takes up the groups it needs."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from python_trainers.common.checks import require_at_least
from python_trainers.common.errors import require
from python_trainers.common.models import require_network
from python_trainers.common.recipe import TrainingOptions, check_recipe

if TYPE_CHECKING:
    from python_trainers.common.teacher import Pretraining

SMOKE_EPOCHS = 3
PATHS = ("out", "data_root", "evaluate", "export", "teacher")


@dataclass(frozen=True)
class RunOptions:
    """Where to write, which seed."""

    out: Path | None = None  # folder to write; None: out/METHOD, or out/METHOD-smoke
    seed: int = 0  # of the few images, the first weights and the batches; the test images are always the same
    smoke: bool = False  # a few epochs only, to see that everything works

    def folder(self, method: str) -> Path:
        """Where the run of ``method`` is written."""
        return self.out or Path("out", f"{method}-smoke" if self.smoke else method)


@dataclass(frozen=True)
class MachineOptions:
    """How the machine is used; results stay the same but for rounding."""

    workers: int | None = None  # processes that read images, per training process; None: up to 8; 0: none
    eval_batch_size: int = 1024  # images tested at once
    compile: bool = False  # torch.compile; the first step then waits for the compiler
    channels_last: bool = False  # memory format of images and weights
    deterministic: bool = True  # kernels that give the same bits again, where torch has them


@dataclass(frozen=True)
class DataOptions:
    """Which images to learn from; the test images are always all of them, under their own labels."""

    dataset: str = "digits"  # digits: real 8x8 images that come with scikit-learn; docs/data.md: the others
    data_root: Path | None = None  # folder (npz: file) of a data set that does not come with a package
    download: bool = False  # let torchvision fetch its data set into --data-root if it is not there
    validation: float = 0.0  # share of the training split that is held out and tested each epoch; 0: none
    train_images: int | None = None  # labelled images for the student, None: all; the teacher sees all
    train_fraction: float | None = None  # the same as a share of the training split, 1: all
    epoch_of: Literal["split", "images"] = "split"  # what an epoch shows: as many images as the split or the student has
    imbalance: float = 1.0  # long tail: the first class keeps so many times the images of the last; 1: none
    noisy_labels: float = 0.0  # share of each class's training images that get another class's label


@dataclass(frozen=True)
class StudentOptions(TrainingOptions, DataOptions, MachineOptions, RunOptions):
    """Options of a run that trains a network."""

    student_model: str = "small_convnet"  # 1,898 weights on digits, an 80th of the default teacher's
    evaluate: Path | None = None  # a run, or a file of weights of --student-model: test it, train nothing
    export: Path | None = None  # .safetensors file that gets the student's weights at the end
    log_with: str | None = None  # a tracker that accelerate knows: tensorboard, wandb, ...

    def __post_init__(self) -> None:
        """Paths may be given as text."""
        for name in PATHS:
            if isinstance(getattr(self, name, None), str):
                object.__setattr__(self, name, Path(getattr(self, name)))

    def check(self) -> None:
        """Refuse, before anything is trained, what would fail later or train nothing."""
        check_recipe(self)
        check_machine(self)
        for network in self.networks:
            require_network(network)
        require(0 <= self.seed < 2**32, f"--seed must be 0 to 4294967295, got {self.seed}")
        require(
            self.keep == "last" or self.validation > 0,
            "--keep best chooses by the accuracy on held-out images: give --validation, a share of the training split",
        )
        require(
            self.export is None or self.export.suffix == ".safetensors",
            f"--export must be a .safetensors file, got {self.export}",
        )
        require(
            self.export is None or self.evaluate is None,
            "--evaluate only tests: to export a finished run, repeat its own command with --export",
        )

    @property
    def trained_model(self) -> str:
        """Name of the network that the run trains."""
        return self.student_model

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of all networks."""
        return (self.student_model,)

    def smoked(self) -> "StudentOptions":
        """The options of ``--smoke``."""
        return replace(self, epochs=SMOKE_EPOCHS)

    def completed(self) -> "StudentOptions":
        """The options with those filled in whose default depends on others."""
        return self

    def pretraining(self) -> "Pretraining | None":
        """The training of the network that teaches; None: nobody teaches."""
        return None

    def on_pair(self, teacher: str, student: str, teacher_epochs: int) -> "StudentOptions":
        """The options with the networks of a comparison."""
        return replace(self, student_model=student)


def check_machine(options: MachineOptions) -> None:
    """Refuse a use of the machine that is none."""
    require_at_least(options, 1, "eval_batch_size")
    if options.workers is not None:
        require_at_least(options, 0, "workers")


def refuse_accumulation(args: TrainingOptions, why: str) -> None:
    """For losses that are no mean over images: parts of a batch would give another result than the batch."""
    require(args.grad_accum_steps == 1, f"--grad-accum-steps must be 1: {why}; lower --batch-size")


def own_options(args: StudentOptions, shared: type) -> dict[str, Any]:
    """Name and value of the options of ``args`` that the groups in ``shared`` do not have: the method's."""
    common = {field.name for field in fields(shared)}
    return {field.name: getattr(args, field.name) for field in fields(args) if field.name not in common}


def data_configuration(options: DataOptions, dataset: str) -> dict[str, Any]:
    """What of the data, called ``dataset``, changes a run's result, under its name; beside it only the seed does."""
    names = ("validation", "train_images", "train_fraction", "epoch_of", "imbalance", "noisy_labels")
    return {"dataset": dataset, **{name: getattr(options, name) for name in names}}
