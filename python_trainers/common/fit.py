"""The loop every method shares: batch, forward, loss, backward, step; after an epoch, test and save.

A method differs in its objective alone: ``objective(model, batch) -> (loss, parts)``, where ``batch`` has
``pixels`` [N, channels, height, width], ``labels`` [N] and ``index`` [N] (which of the images these are), the
loss is a scalar with a gradient and ``parts`` names the scalars worth a column in metrics.jsonl. ``model`` is
the network, or a :class:`Learner` where more than the network learns.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.data import Batch, Batches, Dataset, Images
from python_trainers.common.gather import share_buffers
from python_trainers.common.learner import Learner
from python_trainers.common.metrics import Means, accuracy
from python_trainers.common.models import build_network
from python_trainers.common.models.network import Network
from python_trainers.common.recipe import TrainingOptions, build_optimizer, build_schedule
from python_trainers.common.run import Run
from python_trainers.common.seeding import make_reproducible

Loss = tuple[Tensor, dict[str, Tensor]]  # to minimise; its parts
Objective = Callable[[nn.Module, Batch], Loss]


def learn_from_labels(model: nn.Module, batch: Batch) -> Loss:
    """The objective without a teacher: cross entropy."""
    return F.cross_entropy(model(batch.pixels), batch.labels), {}


def all_processes(accelerator: Accelerator) -> torch.distributed.ProcessGroup | None:
    """The group for a loss that has statistics of the whole batch; None: this process has all of it."""
    return torch.distributed.group.WORLD if accelerator.num_processes > 1 else None


def fit(
    run: Run,
    recipe: TrainingOptions,
    dataset: Dataset,
    images: Images,  # to learn from; an epoch shows as many as ``dataset.train`` holds
    objective: Objective,
    *,
    seed: int,  # of the first weights and of the batches
    learner: Callable[[Network], Learner] | None = None,  # what the objective gets; None: the network
) -> nn.Module:
    """Train ``run.network``, or what is left of it, on ``images``; returns it as the last epoch left it."""
    # Seeded here, so that a student does not depend on whether its teacher was trained now or loaded.
    make_reproducible(seed, dataset.cpu_threads)
    accelerator = run.accelerator
    test = dataset.test.to(accelerator.device)
    network = build_network(run.network, dataset.image_shape, dataset.classes)
    model, tracked, begin_epoch = network, {"model": network}, None
    if learner is not None:
        model = learner(network)
        tracked["beside"], begin_epoch = model.beside, model.begin_epoch

    def measure() -> dict[str, float]:
        if learner is not None:
            return model.measure(test, accelerator)
        return {"test_accuracy": accuracy(model, test, accelerator)}

    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # The statistics of the whole batch, as one process would take them. torch has this on GPUs alone.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimise(
        run,
        recipe,
        dataset,
        images,
        model,
        objective,
        seed=seed,
        tracked=tracked,
        begin_epoch=begin_epoch,
        measure=measure,
    )
    return network


def optimise(
    run: Run,
    recipe: TrainingOptions,
    dataset: Dataset,
    images: Images,
    model: nn.Module,
    objective: Objective,
    *,
    seed: int,  # of the batches
    tracked: dict[str, nn.Module],  # what of the model goes into the checkpoint, under its name there
    begin_epoch: Callable[[int], None] | None = None,  # given the number of the epoch, from 1
    measure: Callable[[], dict[str, float]] | None = None,  # after each epoch, for metrics.jsonl
) -> None:
    """The epochs of ``run`` that are left: train all of ``model`` that has a gradient."""
    accelerator = run.accelerator
    batches = Batches(
        images,
        batch_size=recipe.batch_size,
        images_per_epoch=len(dataset.train),
        background=dataset.background,
        augmentation=replace(dataset.augmentation, rotation=recipe.rotation),
        seed=seed,
        accelerator=accelerator,
    )
    optimizer = build_optimizer(recipe, model)
    schedule = build_schedule(recipe, optimizer, len(batches))
    model, optimizer = accelerator.prepare(model, optimizer)
    run.track(**tracked, optimizer=optimizer, schedule=schedule, batches=batches)
    # accelerate's wrapper looks for a package on disk in every step, which costs more than SGD on a small
    # network; it is there for the scaler of float16.
    stepper = optimizer if accelerator.scaler is not None else optimizer.optimizer

    for epoch in run.remaining_epochs(images_per_epoch=len(batches) * recipe.batch_size):
        if begin_epoch:
            begin_epoch(epoch)
        model.train()
        means = Means()
        for batch in batches:
            loss, parts = objective(model, batch)
            accelerator.backward(loss)
            stepper.step()
            schedule.step()
            stepper.zero_grad()
            means.add(loss=loss, **parts)
        share_buffers(model, accelerator)
        run.end_epoch(
            epoch,
            step=epoch * len(batches),
            **means.read(accelerator),
            **(measure() if measure else {}),
        )
