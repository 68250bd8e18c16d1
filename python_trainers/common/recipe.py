"""How a network is trained: SGD, its learning rate over the steps, and for how long."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from python_trainers.common.checks import (
    require_at_least,
    require_milestones,
    require_not_negative,
    require_positive,
)
from python_trainers.common.errors import require

SMOKE_EPOCHS = 3


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe of a network; a method's ``Args`` gives its own defaults and their sources."""

    epochs: int = 40  # an epoch shows as many images as the training split holds, however few differ
    batch_size: int = 64  # over all processes
    learning_rate: float = 0.01  # at the start, or after the warm-up
    momentum: float = 0.9
    nesterov: bool = True  # Nesterov's step
    weight_decay: float = 5e-4  # L2
    schedule: Literal["cosine", "milestones"] = "cosine"  # cosine: half a wave down to 0
    milestones: tuple[int, ...] = (60, 120, 160)  # epochs after which the rate is multiplied by --decay
    decay: float = 0.2  # factor of a milestone
    warmup_epochs: int = 0  # in which the rate rises linearly, step by step
    rotation: float = 0.0  # degrees by which an image is turned at most, beside the data set's augmentation


def check_recipe(recipe: TrainingOptions) -> None:
    """Refuse a recipe that would fail or train nothing."""
    require_at_least(recipe, 1, "epochs")
    require_at_least(recipe, 0, "warmup_epochs")
    require_positive(recipe, "learning_rate", "decay")
    require_not_negative(recipe, "weight_decay", "rotation")
    require(0 < recipe.momentum < 1, f"--momentum must be between 0 and 1, got {recipe.momentum}")
    require_milestones(recipe, "milestones")


def recipe_configuration(recipe: TrainingOptions) -> dict[str, Any]:
    """Name and value of all that changes a result, but the epochs, of which a run keeps account itself."""
    return {
        field.name: getattr(recipe, field.name) for field in fields(TrainingOptions) if field.name != "epochs"
    }


def build_optimizer(recipe: TrainingOptions, model: nn.Module) -> Optimizer:
    """SGD over all parameters of ``model``."""
    return SGD(
        model.parameters(),
        recipe.learning_rate,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def build_schedule(recipe: TrainingOptions, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """The rate of every step; a warm-up multiplies the schedule, which begins with it."""
    if recipe.schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, T_max=recipe.epochs * steps_per_epoch)
    else:
        steps = [epoch * steps_per_epoch for epoch in recipe.milestones]
        schedule = MultiStepLR(optimizer, steps, gamma=recipe.decay)
    if recipe.warmup_epochs == 0:
        return schedule
    steps = recipe.warmup_epochs * steps_per_epoch
    warmup = LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)
    return ChainedScheduler([schedule, warmup], optimizer)
