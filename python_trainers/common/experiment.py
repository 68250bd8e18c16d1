"""One call of a trainer: options and objects checked and resolved, stages run, figures written.

A method asks for what its paper has, in order: the teacher, then the student under an objective.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from accelerate import Accelerator
from torch import nn

from python_trainers.common.accelerators import check_accelerator, start_accelerator, with_parts_of
from python_trainers.common.best import KeepBest
from python_trainers.common.checkpoint import is_weights_file
from python_trainers.common.data import Augmentation, Images, LoadedImages, source_of
from python_trainers.common.ema import MovingAverage
from python_trainers.common.errors import require
from python_trainers.common.files import require_writable
from python_trainers.common.hooks import Hook
from python_trainers.common.learner import Learner
from python_trainers.common.loop import Objective, learn_from_labels, train
from python_trainers.common.models.trial import check_training
from python_trainers.common.models.weights import export_weights
from python_trainers.common.options import StudentOptions, data_configuration, own_options
from python_trainers.common.plots import learning_curves
from python_trainers.common.progress import announce
from python_trainers.common.recipe import recipe_configuration
from python_trainers.common.resolve import (
    Blueprint,
    Given,
    as_loaded,
    bare,
    load_trained,
    require_apart,
    resolve_dataset,
    resolve_network,
)
from python_trainers.common.run import Run, is_finished
from python_trainers.common.seeding import make_reproducible
from python_trainers.common.stages import stage
from python_trainers.common.task import Classification
from python_trainers.common.teacher import Pretraining, Teacher, TeacherOptions
from python_trainers.common.trackers import Tracking


class Objects(TypedDict, total=False):
    """What may be given to a trainer instead of a name; docs/trainers.md, "Your own network and data".

    None stands for the name in the options. ``TypeError`` for an object of another name.
    """

    dataset: Any  # (train, test): Datasets of (image, label), or DataLoaders of such batches
    student: Given | None  # what is trained: a module that maps images to logits, or a function that returns one
    teacher: Given | None  # the same, trained already; it is frozen
    augmentation: Callable | None  # image [C, H, W] -> image, for training images
    accelerator: Accelerator | None


class Trained(NamedTuple):
    """A stage that ended."""

    network: nn.Module
    summary: dict[str, Any]
    history: list[dict[str, float]]  # figures of each epoch


class Experiment:
    """What all stages of a run have in common."""

    def __init__(
        self,
        method: str,
        args: StudentOptions,
        *,
        dataset: Any = None,
        student: Given | None = None,
        teacher: Given | None = None,
        augmentation: Callable | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        """``method`` names the folder; objects stand for names in ``args``, see :class:`Objects`."""
        args.check()
        require(args.evaluate is None, f"--evaluate {args.evaluate} trains nothing: call common.evaluation.evaluate")
        self.folder = args.folder(method)
        require_writable(self.folder)
        if args.export is not None:
            require(not args.export.is_dir(), f"--export {args.export} is a folder: name a file in it")
            require_writable(args.export.parent, "--export", args.export.name)
        if accelerator is None:
            accelerator = start_accelerator(args, self.folder)
        else:
            check_accelerator(accelerator, args)
        self.accelerator = accelerator
        args = with_parts_of(accelerator, args)
        args = (args.smoked() if args.smoke else args).completed()
        require(
            teacher is None or args.pretraining() is not None,
            f"a teacher is given, but nobody teaches in {method} under these options; leave it out",
        )
        self.dataset, self.images = resolve_dataset(
            args, seed=args.seed, dataset=dataset, augmentation=augmentation, workers=args.workers
        )
        self.args = args = as_loaded(args, self.dataset)
        self.task = Classification.of(self.dataset, args.eval_batch_size, self.accelerator.device)
        self.student = resolve_network(args.trained_model, student, self.dataset)
        self._given_teacher = teacher
        require_apart(student, teacher)
        self._check_batches(args, self.images, self.student)

    def augment(self, augmentation: Augmentation) -> None:
        """Change training images from now on by another ``augmentation``."""
        self.dataset = replace(self.dataset, augmentation=augmentation)

    def complete(self, **values: Any) -> Any:
        """The options with those filled in whose default depends on the data."""
        self.args = replace(self.args, **values)
        return self.args

    def teacher(self, folder: str = "teacher", plan: Pretraining | None = None) -> Teacher:
        """The teacher that is given, else the one that ``--teacher`` names, else the one in ``folder`` below OUT.

        It is trained from labels where it is not trained yet: by ``plan``, else as the method's options say.
        """
        args, plan = self.args, plan or self.args.pretraining()
        path = args.teacher or self.folder / folder
        given = self._given_teacher
        if given is None and plan.few and plan.network == args.trained_model:
            network = self.student
            network.require_again("teacher and student are two networks of one architecture")
        else:
            network = resolve_network(plan.network, given, self.dataset, "teacher")
        if given is not None and args.teacher is None:
            return self._frozen(network, network.build())
        if args.teacher is not None and (is_weights_file(path) or is_finished(path)):
            return self._frozen(network, *load_trained(path, network, self.dataset))
        require(given is None, f"--teacher {path} holds no finished run whose weights the given module could take")
        if args.teacher is not None:
            require_writable(path, "--teacher")
        recipe = args.recipe_of(plan)
        images = self.images if plan.few else self.dataset.train
        self._check_batches(recipe, images, network)
        configuration = {**self.configuration(recipe), "seed": args.seed}
        run = self.run(path, network.name, configuration, epochs=plan.epochs)
        module, summary, _ = self.fit(run, recipe, images, learn_from_labels, network.build, seed=args.seed)
        return self._frozen(network, module, summary["figures"]["test_accuracy"])

    def _frozen(self, network: Blueprint, module: nn.Module, test_accuracy: float | None = None) -> Teacher:
        if test_accuracy is None:
            module.to(self.accelerator.device)
            test_accuracy = self.task.measure(module, self.accelerator)["test_accuracy"]
        return Teacher(module, test_accuracy, self.accelerator, network.name)

    def train_student(
        self,
        objective: Objective,
        *,
        losses: Mapping[str, str],  # to plot: name in metrics.jsonl -> label
        teacher: Teacher | None = None,
        learner: Callable[[nn.Module], Learner] | None = None,  # the network and what learns beside it
        folder: Path | None = None,  # None: OUT
        seed: int | None = None,  # of the first weights and of the batches; None: --seed
        identity: Mapping[str, Any] = {},  # what changes the result, beside data, recipe and the method's options
        figures: Callable[[nn.Module], dict[str, float]] | None = None,  # of the final network, for the summary
        accuracies: Mapping[str, str] = {"test_accuracy": "student"},  # to plot, as the losses
    ) -> Trained:
        """Train the student, or what is left of it; returns it, its summary and its figures."""
        args, folder = self.args, folder or self.folder
        seed = args.seed if seed is None else seed
        of_teacher = teacher.figures if teacher else {}
        configuration = {
            **self.configuration(args),
            **own_options(args, TeacherOptions),
            **identity,
            "seed": seed,
            "teacher": of_teacher.get("teacher_fingerprint"),
        }
        run = self.run(folder, self.student.name, configuration, epochs=args.epochs)
        trained = self.fit(
            run,
            args,
            self.images,
            objective,
            self.student.build,
            seed=seed,
            learner=learner,
            figures=lambda network: {**of_teacher, **(figures(network) if figures else {})},
        )
        if self.accelerator.is_main_process:
            learning_curves(
                folder / "curves.png",
                trained.history,
                title=f"{self.student.name} on {len(self.images)} images of {self.dataset.name}, seed {args.seed}",
                losses=losses,
                accuracies=accuracies,
                teacher_accuracy=of_teacher.get("teacher_accuracy"),
            )
            if args.export is not None and folder == self.folder:
                shape, classes = self.dataset.image_shape, self.dataset.classes
                weights = bare(trained.network)
                export_weights(weights, args.export, name=self.student.name, image_shape=shape, classes=classes)
        self.accelerator.print(f"{folder}: test accuracy {trained.summary['figures']['test_accuracy']:.4f}")
        return trained

    def configuration(self, recipe: StudentOptions) -> dict[str, Any]:
        """What of data and recipe changes a result."""
        given = self.dataset.augmentation.given
        return {
            **data_configuration(recipe, self.dataset.name),
            **({} if given is None else {"augmentation": given}),
            **recipe_configuration(recipe),
        }

    def run(self, folder: Path, network: str, configuration: dict[str, Any], *, epochs: int) -> Run:
        """The run in ``folder``."""
        return Run(folder, network, configuration, epochs=epochs, accelerator=self.accelerator)

    def fit(
        self,
        run: Run,
        recipe: StudentOptions,
        images: Images,  # to learn from
        objective: Objective,
        build: Callable[[], nn.Module],
        *,
        seed: int,
        learner: Callable[[nn.Module], Learner] | None = None,  # None: the network alone learns
        figures: Callable[[nn.Module], dict[str, Any]] = lambda network: {},
    ) -> Trained:
        """A stage: a network that learns to classify; returns it, the summary and the figures of its run."""
        # Seeded here, so that a student does not depend on whether its teacher was trained now or loaded.
        make_reproducible(seed, self.dataset.cpu_threads, deterministic=recipe.deterministic)
        network = build()
        model, tracked = network, {"model": bare(network)}
        measure = partial(self.task.measure, network, self.accelerator)
        if learner is not None:
            model = learner(network)
            tracked["beside"] = model.beside
            measure = partial(model.measure, self.task, self.accelerator)

        def learn() -> dict[str, Any]:
            hooks: list[Hook] = [model] if learner is not None else []
            kept = {"network": bare(network)}
            if recipe.model_ema_decay > 0:
                average = MovingAverage(network, recipe.model_ema_decay, self.task, self.accelerator)
                hooks.append(average)
                kept["average"] = average.network
            if recipe.keep == "best":
                hooks.append(KeepBest(kept, self.task.selection, run.epochs))
            if run.folder == self.folder and self.accelerator.log_with:
                hooks.append(Tracking(self.accelerator, run.configuration))
            self.learn(run, recipe, images, objective, model, tracked, seed=seed, hooks=hooks, measure=measure)
            return {"train_images": len(images), "test_images": len(self.dataset.test), **figures(network)}

        return Trained(network, stage(run, tracked, learn), run.history)

    def learn(
        self,
        run: Run,
        recipe: StudentOptions,
        images: Images,
        objective: Objective,
        model: nn.Module,
        tracked: Mapping[str, nn.Module],
        *,
        seed: int,  # of the batches
        hooks: Sequence[Hook] = (),
        measure: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Train ``model`` on batches of ``images``: what is left of ``run``."""
        source = source_of(
            images,
            batch_size=recipe.batch_size // recipe.grad_accum_steps,
            images_per_epoch=self._shown(recipe, images) // recipe.batch_size * recipe.batch_size,
            background=self.dataset.background,
            augmentation=replace(self.dataset.augmentation, rotation=recipe.rotation),
            seed=seed,
            accelerator=self.accelerator,
            channels_last=recipe.channels_last,
        )
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            # The statistics of the whole batch, as one process would take them. torch has this on GPUs alone.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        if recipe.compile:
            model.compile()
        announce(run, model, images=len(images), steps=len(source) // recipe.grad_accum_steps)
        train(run, recipe, source, model, objective, tracked=tracked, hooks=hooks, measure=measure)

    def _shown(self, recipe: StudentOptions, images: Images) -> int:
        """How many images an epoch shows."""
        return len(self.dataset.train) if recipe.epoch_of == "split" else len(images)

    def _check_batches(self, recipe: StudentOptions, images: Images, network: Blueprint) -> None:
        """Refuse batches that an epoch does not fill, that cannot be dealt out, or on which ``network`` fails."""
        shown, parts = self._shown(recipe, images), recipe.grad_accum_steps
        shares = self.accelerator.num_processes * parts
        sizes = images.batch_sizes if isinstance(images, LoadedImages) else (recipe.batch_size,)
        for size in sizes:
            require(
                size <= shown and size % shares == 0,
                f"--batch-size must be 1 to {shown}, the images of an epoch, and a multiple of "
                f"{self.accelerator.num_processes} processes x {parts} accumulated parts, got {size}",
            )
        rows = min(sizes) // shares
        if rows == 1 or not network.named:
            with torch.random.fork_rng(devices=[]):
                trial = network.build()
            check_training(trial, self.dataset.image_shape, self.dataset.classes, rows, network.name)
