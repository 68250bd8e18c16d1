"""What the trainers cost beside a loop by hand of the same steps: load, forward, loss, backward, step.

    python -m benchmarks.trainers [--seconds S] [--threads N]

Distillation at T = 4 on one CPU: digits, and random images of CIFAR's size with its crops and flips. The trainer is
timed twice: its steps alone, and with what the loop by hand leaves out, testing and saving after every epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

import kdkernels as kd
from python_trainers import kd as trainer
from python_trainers.common.data import Augmentation, Dataset, Images, load_dataset
from python_trainers.common.data.images import Standard
from python_trainers.common.experiment import Experiment
from python_trainers.common.models import build_network
from python_trainers.common.run import Run
from python_trainers.common.task import Classification
from python_trainers.common.teacher import Teacher

from .timing import alternate, ratio, spread

EPOCHS = 3  # per timed call
SETTINGS = {  # name -> data set, teacher, student
    "digits": ("digits", "small_resnet", "small_convnet"),
    "CIFAR-sized, small network": ("random", "small_convnet", "small_convnet"),
    "CIFAR-sized, ResNet": ("random", "resnet8x4", "resnet20"),
}


def random_dataset() -> Dataset:
    """512 training images of CIFAR's shape, and one batch to test on."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (576, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.randint(10, (576,), generator=generator), Standard.of(pixels))
    return Dataset(
        name="random",
        train=images.subset(torch.arange(512)),
        test=images.subset(torch.arange(512, 576)),
        classes=10,
        augmentation=Augmentation(padding=4, flip=True),
        background=0,
        cpu_threads=None,
    )


def batches_by_hand(dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: shuffled, shifted, flipped where the data set is, standardised."""
    padding, images = dataset.augmentation.padding, dataset.train
    height, width = images.pixels.shape[2:]
    for index in torch.randperm(len(images)).split(batch_size):
        if len(index) < batch_size:
            return
        padded = F.pad(images.pixels[index], (padding,) * 4, value=dataset.background)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * padding + 1, (2, len(index)))
        pixels = windows[torch.arange(len(index)), :, down, right]
        if dataset.augmentation.flip:
            pixels = torch.where(torch.rand(len(index), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
        if images.standard is not None:
            pixels = (pixels - images.standard.mean) / images.standard.std
        yield pixels, images.labels[index]


def by_hand(dataset: Dataset, student: str, teacher: torch.nn.Module, args: trainer.Args) -> None:
    """The loop one would write."""
    model = build_network(student, dataset.image_shape, dataset.classes)
    optimizer = torch.optim.SGD(
        model.parameters(), args.learning_rate, args.momentum, weight_decay=args.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (len(dataset.train) // args.batch_size))
    for _ in range(EPOCHS):
        for pixels, labels in batches_by_hand(dataset, args.batch_size):
            with torch.no_grad():
                teacher_logits = teacher(pixels)
            loss = kd.kd_loss(model(pixels), teacher_logits, labels, temperature=4.0)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def contenders(setting: str, folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> a run of ``EPOCHS`` epochs."""
    data, teacher_name, student = SETTINGS[setting]
    dataset = load_dataset("digits", None) if data == "digits" else random_dataset()
    # Every contender has the threads that the user asked for.
    dataset, accelerator = replace(dataset, cpu_threads=None), Accelerator()
    args = trainer.Args(epochs=EPOCHS)
    network = build_network(teacher_name, dataset.image_shape, dataset.classes)
    teacher = Teacher(network, 0.0, accelerator)
    numbers = itertools.count()

    experiment = Experiment("kd", replace(args, out=folder / "experiment"), accelerator=accelerator)
    experiment.dataset, experiment.task = dataset, Classification.of(dataset, 1024, accelerator.device)

    def whole() -> None:
        run = experiment.run(folder / f"{next(numbers)}", student, {}, epochs=EPOCHS)
        build = partial(build_network, student, dataset.image_shape, dataset.classes)
        experiment.fit(run, args, dataset.train, trainer.learn_from(teacher, args), build, seed=0)

    def steps() -> None:
        def keep(run: Run, epoch: int, **figures: float) -> None:
            run.history.append({"epoch": epoch, **figures})

        with (
            mock.patch.object(Run, "end_epoch", keep),
            mock.patch.object(Run, "finish", lambda run, **figures: {}),
            mock.patch.object(Classification, "measure", lambda *_: {"test_accuracy": 0.0}),
        ):
            whole()

    return {"by hand": lambda: by_hand(dataset, student, teacher.network, args), "steps": steps, "whole": whole}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What runs show is thrown away."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainers", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="per row")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| setting | by hand, ms per epoch | steps of the trainer | with test and checkpoint |")
    print("| --- | --- | --- | --- |")
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder, silence():
            times = alternate(contenders(setting, Path(folder)), "cpu", options.seconds)
        hand = 1e3 * statistics.median(times["by hand"]) / EPOCHS
        steps, whole = (100 * (1 / ratio(times, "by hand", name) - 1) for name in ("steps", "whole"))
        print(f"| {setting} | {hand:.1f} ± {100 * spread(times['by hand']):.0f} % | {steps:+.0f} % | {whole:+.0f} % |")


if __name__ == "__main__":
    main()
