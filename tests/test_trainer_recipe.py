"""The learning rate of every step, the steps, and recipes that are refused."""

import math

import pytest
import torch
from torch import nn
from trainer_runs import torch_settings  # noqa: F401

from python_trainers import kd
from python_trainers.common.errors import TrainerError
from python_trainers.common.models import build_network
from python_trainers.common.recipe import TrainingOptions, build_optimizer, build_schedule, check_recipe

pytestmark = pytest.mark.trainers
STEPS = 4  # per epoch


def rates(recipe: TrainingOptions) -> list[float]:
    """The learning rate of each step of a run."""
    optimizer = build_optimizer(recipe, nn.Linear(1, 1))
    schedule = build_schedule(recipe, optimizer, STEPS)
    seen = []
    for _ in range(recipe.epochs * STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_falls_from_the_rate_to_0():
    seen = rates(TrainingOptions(epochs=5, learning_rate=2.0))
    assert seen == pytest.approx([1 + math.cos(math.pi * step / 20) for step in range(20)])


def test_milestones_multiply_after_their_epoch():
    recipe = TrainingOptions(epochs=4, learning_rate=1.0, schedule="milestones", milestones=(1, 3), decay=0.1)
    assert rates(recipe) == pytest.approx([1.0] * 4 + [0.1] * 8 + [0.01] * 4)


@pytest.mark.parametrize("schedule", ["cosine", "milestones"])
def test_warmup_is_linear_in_the_step_and_multiplies_the_schedule(schedule):
    recipe = {"epochs": 6, "learning_rate": 1.0, "schedule": schedule, "milestones": (3,)}
    plain = rates(TrainingOptions(**recipe))
    ramp = [min(1, (step + 1) / 8) for step in range(24)]
    warmed = rates(TrainingOptions(**recipe, warmup_epochs=2))
    assert warmed == pytest.approx([a * b for a, b in zip(plain, ramp, strict=True)])


def test_optimizer_has_the_options():
    group = build_optimizer(
        TrainingOptions(momentum=0.8, nesterov=False, weight_decay=0.02, learning_rate=0.3), nn.Linear(1, 1)
    ).param_groups[0]
    names = ("momentum", "nesterov", "weight_decay", "lr")
    assert [group[name] for name in names] == [0.8, False, 0.02, 0.3]


def test_adamw_has_the_options():
    recipe = TrainingOptions(optimizer="adamw", momentum=0.8, weight_decay=0.02, learning_rate=0.3)
    optimizer = build_optimizer(recipe, nn.Linear(1, 1))
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert [group[name] for name in ("betas", "weight_decay", "lr")] == [(0.8, 0.999), 0.02, 0.3]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_norms_and_biases_decay_unless_told_otherwise(optimizer, decay_norms):
    """Under a gradient of 0 a weight changes by its decay alone."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    names = dict(model.named_parameters())
    for weight in names.values():
        weight.data.fill_(1.0)
        weight.grad = torch.zeros_like(weight)
    recipe = TrainingOptions(optimizer=optimizer, decay_norms=decay_norms, weight_decay=0.5, learning_rate=0.1)
    build_optimizer(recipe, model).step()
    changed = {name for name, weight in names.items() if not torch.equal(weight, torch.ones_like(weight))}
    assert changed == (set(names) if decay_norms else {"0.weight", "2.weight"})


def test_step_without_momentum_is_the_plain_one():
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(TrainingOptions(momentum=0.0, weight_decay=0.0, learning_rate=0.1), model)
    before = model.weight.item()
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert model.weight.item() == pytest.approx(before - 0.3)


@pytest.mark.parametrize("parts", [1, 4])
def test_clipped_step_is_as_long_as_the_limit(parts, tmp_path):
    """The one step of an epoch of one batch, at a rate of 1."""
    student = build_network("small_mlp", (1, 8, 8), 10)
    before = nn.utils.parameters_to_vector(student.parameters()).detach().clone()
    recipe = {"epochs": 1, "batch_size": 1000, "grad_accum_steps": parts, "learning_rate": 1.0, "clip_grad": 0.01}
    kd.train(kd.Args(**recipe, kl_weight=0.0, momentum=0.0, weight_decay=0.0, out=tmp_path), student=student)
    step = nn.utils.parameters_to_vector(student.parameters()) - before
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "--epochs must be >= 1, got 0"),
        ({"warmup_epochs": -1}, "--warmup-epochs must be >= 0, got -1"),
        ({"learning_rate": math.nan}, "--learning-rate must be > 0 and finite, got nan"),
        ({"decay": 0.0}, "--decay must be > 0 and finite, got 0.0"),
        ({"weight_decay": math.inf}, "--weight-decay must be >= 0 and finite, got inf"),
        ({"rotation": -1.0}, "--rotation must be >= 0 and finite, got -1.0"),
        ({"clip_grad": 0.0}, "--clip-grad must be > 0 and finite, got 0.0"),
        ({"model_ema_decay": 1.0}, r"--model-ema-decay must be >= 0 \(none\) and < 1, got 1.0"),
        ({"grad_accum_steps": 0}, "--grad-accum-steps must be >= 1, got 0"),
        ({"momentum": 1.0}, "--momentum must be >= 0 and < 1, got 1.0"),
        ({"milestones": (60, 60)}, "--milestones must be rising epochs >= 1, got 60 60"),
        ({"milestones": (0, 60)}, "--milestones must be rising epochs >= 1, got 0 60"),
    ],
)
def test_refused(options, sentence):
    with pytest.raises(TrainerError, match=sentence):
        check_recipe(TrainingOptions(**options))
