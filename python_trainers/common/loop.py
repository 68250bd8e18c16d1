"""The loop that every trainer shares: batch, forward, loss, backward, step; after an epoch, measure and save.

A method differs in its objective: ``objective(model, batch) -> (loss, parts)``, where ``batch`` is what the
source gives, the loss is a scalar with a gradient and ``parts`` names the scalars worth a column in
metrics.jsonl. ``model`` is the network, or a :class:`Learner` where more than the network learns.

An epoch is what the source says it is: all images once, a task of a stream, a number of steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from python_trainers.common.data.sources import Source
from python_trainers.common.gather import share_statistics
from python_trainers.common.hooks import Hook
from python_trainers.common.metrics import Means
from python_trainers.common.progress import Progress
from python_trainers.common.recipe import TrainingOptions, build_optimizer, build_schedule
from python_trainers.common.run import Run

Loss = tuple[Tensor, dict[str, Tensor]]  # to minimize; its parts
Objective = Callable[[nn.Module, Any], Loss]


def learn_from_labels(model: nn.Module, batch: Any) -> Loss:
    """The objective without a teacher: cross entropy."""
    return F.cross_entropy(model(batch.pixels), batch.labels), {}


def all_processes(accelerator: Accelerator) -> torch.distributed.ProcessGroup | None:
    """The group for a loss that has statistics of the whole batch; None: this process has all of it."""
    return torch.distributed.group.WORLD if accelerator.num_processes > 1 else None


def train(
    run: Run,
    recipe: TrainingOptions,
    source: Source,
    model: nn.Module,  # all of it that has a gradient is trained
    objective: Objective,
    *,
    tracked: Mapping[str, nn.Module],  # what of the model goes into the checkpoint; "model": the network
    hooks: Sequence[Hook] = (),
    measure: Callable[[], dict[str, float]] = dict,  # after each epoch, for metrics.jsonl; the headline first
) -> None:
    """The epochs of ``run`` that are left."""
    accelerator, parts_of_batch = run.accelerator, recipe.grad_accum_steps
    steps = len(source) // parts_of_batch
    optimizer = build_optimizer(recipe, model)
    schedule = build_schedule(recipe, optimizer, steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    # accelerate's wrapper looks for a package on disk in every step, which costs more than SGD on a small
    # network; it is there for the scaler of float16.
    stepper = optimizer if accelerator.scaler is not None else optimizer.optimizer
    states = {hook.name: hook for hook in hooks if hook.name}
    run.track(**tracked, optimizer=optimizer, schedule=schedule, batches=source, **states)
    progress = Progress(run, batches=len(source), images=recipe.batch_size // parts_of_batch)
    with progress, accumulation(accelerator, parts_of_batch), ExitStack() as ends:
        for hook in hooks:
            ends.callback(hook.close)
        for epoch in run.remaining_epochs():
            for hook in hooks:
                hook.begin_epoch(epoch)
            model.train()
            means = Means()
            for batch in source:
                with accelerator.accumulate(model):
                    loss, parts = objective(model, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        if recipe.clip_grad is not None:
                            accelerator.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                        for hook in hooks:
                            hook.before_step()
                        stepper.step()
                        schedule.step()
                        stepper.zero_grad()
                        for hook in hooks:
                            hook.after_step()
                means.add(loss=loss, **parts)
                progress.step(means)
            share_statistics(tracked["model"], model, accelerator)
            measured = measure()
            figures = {"step": epoch * steps, **means.read(accelerator), **measured}
            for hook in hooks:
                figures |= hook.end_epoch(epoch, figures)
            run.end_epoch(epoch, **figures)
            progress.epoch(run.history[-1], shown=("loss", *list(measured)[:1]))


@contextmanager
def accumulation(accelerator: Accelerator, parts: int) -> Iterator[None]:
    """Gradients are summed over so many parts of a batch; accelerate divides the loss of each."""
    before, accelerator.gradient_accumulation_steps = accelerator.gradient_accumulation_steps, parts
    accelerator.step = 0  # of the parts; a stage that failed may have ended within a batch
    try:
        yield
    finally:
        accelerator.gradient_accumulation_steps = before
