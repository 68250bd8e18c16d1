"""Knowledge distillation.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015 (presented at the
NIPS 2014 Deep Learning Workshop), https://arxiv.org/abs/1503.02531. A small student learns from the
labels and from the softened outputs of a large teacher:

    loss = ce_weight * CE(student, label) + kl_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))

    python -m python_trainers.kd --train-images 50 --out out/kd                # distilled, from 50 images
    python -m python_trainers.kd --train-images 50 --kl-weight 0 --out out/ce  # the same without a teacher

Reproduced: section 6, soft targets let a network learn from few examples. On digits, over 8 seeds (mean
and sample standard deviation; ``python -m python_trainers.demo``): 81.9 +- 2.5 % without a teacher, 89.6
+- 1.2 % with one. Seconds per network on one CPU core.

Deviations from the paper:
1. Data and networks: 8x8 digits and small convolutional networks instead of MNIST, speech and JFT.
2. Optimizer and schedule: SGD with momentum and a cosine; the paper gives none for a comparable task.
3. One teacher, not an ensemble of specialists (section 5).
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import kdkernels as kd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from python_trainers.common.checkpoint import fingerprint
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batches, Dataset, Images, few_images, load_dataset
from python_trainers.common.errors import require
from python_trainers.common.metrics import Means, accuracy
from python_trainers.common.models import build_network, require_network
from python_trainers.common.options import RunOptions
from python_trainers.common.plots import learning_curves
from python_trainers.common.run import Run, load_trained
from python_trainers.common.seeding import make_reproducible


@dataclass(frozen=True)
class Args(RunOptions):
    """Options of the method; defaults are the paper's where it names one."""

    teacher: Path | None = None  # folder or checkpoint of a finished run; None: train one under OUT/teacher
    teacher_model: str = "small_resnet"  # ours: 80 times the student's weights
    teacher_epochs: int = 40  # ours, as --epochs
    student_model: str = "small_convnet"  # ours: 1,898 weights on digits
    train_images: int | None = None  # labelled images for the student, None: all; the teacher sees all
    epochs: int = 40  # ours; an epoch shows as many images as the training split holds, however few differ
    temperature: float = 4.0  # section 3: 2.5 to 4 is best for the smallest student
    ce_weight: float = 0.1  # section 2: "considerably lower" than the other; Tian et al. 2020 (CRD)
    kl_weight: float = 0.9  # Tian et al. 2020; 0: no teacher, plain cross entropy, --ce-weight unused
    batch_size: int = 64  # over all processes; Tian et al. 2020, as the next three: the paper names none
    learning_rate: float = 0.01  # at the start, as for their smallest nets; falls to 0 along half a cosine
    momentum: float = 0.9  # with Nesterov's step, which is ours
    weight_decay: float = 5e-4  # L2


OPTIMIZER_OPTIONS = ("batch_size", "learning_rate", "momentum", "weight_decay")
LOSS_OPTIONS = ("temperature", "ce_weight", "kl_weight")
SMOKE_EPOCHS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console("kd", Args, train, argv, "Knowledge distillation (Hinton, Vinyals, Dean 2015).")


def train(args: Args) -> dict[str, Any]:
    """Train the student, and before it the teacher if none is given; returns the summary."""
    check(args)
    if args.smoke:
        args = replace(args, epochs=SMOKE_EPOCHS, teacher_epochs=SMOKE_EPOCHS)
    folder = args.folder("kd")
    accelerator = Accelerator()
    dataset = load_dataset(args.dataset, args.data_root)
    images = few_images(dataset, args.train_images, seed=args.seed)

    teacher, teacher_figures = None, {}
    if args.kl_weight > 0:
        teacher = obtain_teacher(args, folder / "teacher", dataset, accelerator)
        teacher_accuracy = accuracy(teacher, dataset.test.to(accelerator.device), accelerator)
        teacher_figures = {"teacher_accuracy": teacher_accuracy, "teacher_fingerprint": fingerprint(teacher)}
    configuration = {
        **select(args, "dataset", "seed", "train_images", *LOSS_OPTIONS, *OPTIMIZER_OPTIONS),
        "teacher": teacher_figures.get("teacher_fingerprint"),
    }
    run = Run(folder, args.student_model, configuration, epochs=args.epochs, accelerator=accelerator)
    fit(run, args, dataset, images, teacher)

    learning_curves(
        folder / "curves.png",
        run.history,
        title=f"{args.student_model} on {len(images)} images of {args.dataset}, seed {args.seed}",
        losses={"loss": "total", "ce": "cross entropy", "kl": "$T^2$ KL"}
        if teacher
        else {"loss": "cross entropy"},
        teacher_accuracy=teacher_figures.get("teacher_accuracy"),
    )
    summary = run.finish(train_images=len(images), test_images=len(dataset.test), **teacher_figures)
    accelerator.print(f"{folder}: test accuracy {summary['figures']['test_accuracy']:.4f}")
    return summary


def obtain_teacher(args: Args, folder: Path, dataset: Dataset, accelerator: Accelerator) -> nn.Module:
    """The frozen teacher: loaded from ``--teacher``, else trained from labels on the whole training split."""
    if args.teacher is not None:
        network = load_trained(args.teacher, args.dataset, dataset.image_shape, dataset.classes)
    else:
        configuration = select(args, "dataset", "seed", *OPTIMIZER_OPTIONS)
        run = Run(
            folder, args.teacher_model, configuration, epochs=args.teacher_epochs, accelerator=accelerator
        )
        network = fit(run, args, dataset, dataset.train)
        run.finish(train_images=len(dataset.train), test_images=len(dataset.test))
    return network.to(accelerator.device).eval().requires_grad_(False)


def fit(
    run: Run, args: Args, dataset: Dataset, images: Images, teacher: nn.Module | None = None
) -> nn.Module:
    """Train ``run.network`` on ``images``, from the labels alone or also from ``teacher``."""
    # Seeded here, so that a student does not depend on whether its teacher was trained now or loaded.
    make_reproducible(args.seed, dataset.cpu_threads)
    accelerator = run.accelerator
    test = dataset.test.to(accelerator.device)
    batches = Batches(
        images,
        batch_size=args.batch_size,
        images_per_epoch=len(dataset.train),
        background=dataset.background,
        seed=args.seed,
        accelerator=accelerator,
    )
    model = build_network(run.network, dataset.image_shape, dataset.classes)
    optimizer = torch.optim.SGD(
        model.parameters(), args.learning_rate, args.momentum, weight_decay=args.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.epochs * len(batches))
    model, optimizer = accelerator.prepare(model, optimizer)
    run.track(model=model, optimizer=optimizer, schedule=schedule, batches=batches)

    for epoch in run.remaining_epochs(images_per_epoch=len(batches) * args.batch_size):
        model.train()
        means = Means()
        for pixels, labels in batches:
            logits = model(pixels)
            if teacher is None:
                loss, parts = F.cross_entropy(logits, labels), {}
            else:
                with torch.no_grad(), accelerator.autocast():
                    teacher_logits = teacher(pixels)
                loss, parts = kd.kd_loss(
                    logits,
                    teacher_logits,
                    labels,
                    temperature=args.temperature,
                    ce_weight=args.ce_weight,
                    kl_weight=args.kl_weight,
                    return_parts=True,
                )
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            means.add(loss=loss, **parts)
        run.end_epoch(
            epoch,
            step=epoch * len(batches),
            **means.read(accelerator),
            test_accuracy=accuracy(model, test, accelerator),
        )
    return accelerator.unwrap_model(model)


def select(args: Args, *names: str) -> dict[str, Any]:
    """The named options: those that decide a run's result."""
    options = asdict(args)
    return {name: options[name] for name in names}


def check(args: Args) -> None:
    """Refuse, before anything is trained, what would fail later or train nothing."""
    for name in ("epochs", "teacher_epochs"):
        require(getattr(args, name) >= 1, f"{option(name)} must be >= 1, got {getattr(args, name)}")
    for name in ("temperature", "learning_rate"):
        value = getattr(args, name)
        require(0 < value < float("inf"), f"{option(name)} must be > 0 and finite, got {value}")
    for name in ("ce_weight", "kl_weight", "weight_decay"):
        value = getattr(args, name)
        require(0 <= value < float("inf"), f"{option(name)} must be >= 0 and finite, got {value}")
    require(0 < args.momentum < 1, f"--momentum must be between 0 and 1, got {args.momentum}")
    require(args.seed >= 0, f"--seed must be >= 0, got {args.seed}")
    require_network(args.teacher_model)
    require_network(args.student_model)


def option(name: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
