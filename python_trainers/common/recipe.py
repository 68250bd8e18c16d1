"""How a network is trained: optimizer, its learning rate over the steps, and for how long."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from python_trainers.common.checks import (
    require_at_least,
    require_milestones,
    require_not_negative,
    require_positive,
)
from python_trainers.common.errors import require


@dataclass(frozen=True)
class TrainingOptions:
    """The recipe of a network; a method's ``Args`` gives its own defaults and their sources."""

    epochs: int = 40  # an epoch shows as many images as the training split holds, but see --epoch-of
    batch_size: int = 64  # images of a step, over all processes and accumulated parts
    grad_accum_steps: int = 1  # parts of a batch that are computed one after another, to save memory
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01  # at the start, or after the warm-up
    momentum: float = 0.9  # of sgd; adamw: beta_1
    nesterov: bool = True  # sgd: Nesterov's step
    weight_decay: float = 5e-4  # sgd: L2; adamw: decoupled, times the learning rate
    decay_norms: bool = True  # decay biases and scales of normalization too: all parameters of one dimension
    clip_grad: float | None = None  # largest norm of the gradient of all parameters; None: no limit
    schedule: Literal["cosine", "milestones"] = "cosine"  # cosine: half a wave down to 0
    milestones: tuple[int, ...] = (60, 120, 160)  # epochs after which the rate is multiplied by --decay
    decay: float = 0.2  # factor of a milestone
    warmup_epochs: int = 0  # in which the rate rises linearly, step by step
    rotation: float = 0.0  # degrees by which an image is turned at most, beside the data set's augmentation
    model_ema_decay: float = 0.0  # of a moving average of the weights, tested and kept beside them; 0: none
    keep: Literal["last", "best"] = "last"  # which epoch's weights; best: by accuracy on --validation


def check_recipe(recipe: TrainingOptions) -> None:
    """Refuse a recipe that would fail or train nothing."""
    require_at_least(recipe, 1, "epochs", "batch_size", "grad_accum_steps")
    require_at_least(recipe, 0, "warmup_epochs")
    require_positive(recipe, "learning_rate", "decay")
    require_not_negative(recipe, "weight_decay", "rotation")
    require(0 <= recipe.momentum < 1, f"--momentum must be >= 0 and < 1, got {recipe.momentum}")
    if recipe.clip_grad is not None:
        require_positive(recipe, "clip_grad")
    require_milestones(recipe, "milestones")
    require(
        0 <= recipe.model_ema_decay < 1,
        f"--model-ema-decay must be >= 0 (none) and < 1, got {recipe.model_ema_decay}",
    )
    require(
        recipe.batch_size % recipe.grad_accum_steps == 0,
        f"--grad-accum-steps must divide --batch-size, got {recipe.grad_accum_steps} and {recipe.batch_size}",
    )


def recipe_configuration(recipe: TrainingOptions) -> dict[str, Any]:
    """Name and value of all that changes a result, but the epochs, of which a run keeps account itself."""
    return {
        field.name: getattr(recipe, field.name) for field in fields(TrainingOptions) if field.name != "epochs"
    }


def build_optimizer(recipe: TrainingOptions, model: nn.Module) -> Optimizer:
    """Over all parameters of ``model`` that have a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": parameters}]
    if not recipe.decay_norms:
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
            {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return AdamW(groups, rate, betas=(recipe.momentum, 0.999), weight_decay=decay)
    nesterov = recipe.nesterov and recipe.momentum > 0  # of no momentum it is the plain step
    return SGD(groups, rate, recipe.momentum, weight_decay=decay, nesterov=nesterov)


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
