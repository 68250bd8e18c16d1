"""Students: a run whose network learns by a method's objective; its curves and summary."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from python_trainers.common.data import Dataset, Images
from python_trainers.common.fit import Objective, fit
from python_trainers.common.learner import Learner
from python_trainers.common.models.network import Network
from python_trainers.common.options import StudentOptions, data_configuration
from python_trainers.common.plots import learning_curves
from python_trainers.common.recipe import recipe_configuration
from python_trainers.common.run import Run
from python_trainers.common.teacher import Teacher


def train_student(
    folder: Path,
    network: str,
    args: StudentOptions,
    dataset: Dataset,
    images: Images,  # to learn from
    teacher: Teacher | None,
    objective: Objective,
    accelerator: Accelerator,
    *,
    method: Mapping[str, Any],  # the method's own options and their values: those that change the result
    losses: Mapping[str, str],  # to plot: name in metrics.jsonl -> label
    seed: int,
    figures: Callable[[nn.Module], dict[str, float]] | None = None,  # of the final network, for the summary
    learner: Callable[[Network], Learner] | None = None,  # the network and what learns beside it
    accuracies: Mapping[str, str] = {"test_accuracy": "student"},  # to plot, as the losses
) -> tuple[nn.Module, dict[str, Any]]:
    """Train ``network``, or what is left of it, under ``folder``; returns it and its summary."""
    of_teacher = teacher.figures if teacher else {}
    configuration = {
        **data_configuration(args, dataset),
        **recipe_configuration(args),
        **method,
        "seed": seed,
        "teacher": of_teacher.get("teacher_fingerprint"),
    }
    run = Run(folder, network, configuration, epochs=args.epochs, accelerator=accelerator)
    model = fit(run, args, dataset, images, objective, seed=seed, learner=learner)
    if accelerator.is_main_process:
        learning_curves(
            folder / "curves.png",
            run.history,
            title=f"{network} on {len(images)} images of {args.dataset}, seed {args.seed}",
            losses=losses,
            accuracies=accuracies,
            teacher_accuracy=of_teacher.get("teacher_accuracy"),
        )
    summary = run.finish(
        train_images=len(images),
        test_images=len(dataset.test),
        **of_teacher,
        **(figures(model) if figures else {}),
    )
    accelerator.print(f"{folder}: test accuracy {summary['figures']['test_accuracy']:.4f}")
    return model, summary
