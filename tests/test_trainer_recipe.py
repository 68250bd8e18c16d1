"""The learning rate of every step, and recipes that are refused."""

import math

import pytest
from torch import nn
from trainer_runs import torch_settings  # noqa: F401

from python_trainers.common.errors import TrainerError
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "--epochs must be >= 1, got 0"),
        ({"warmup_epochs": -1}, "--warmup-epochs must be >= 0, got -1"),
        ({"learning_rate": math.nan}, "--learning-rate must be > 0 and finite, got nan"),
        ({"decay": 0.0}, "--decay must be > 0 and finite, got 0.0"),
        ({"weight_decay": math.inf}, "--weight-decay must be >= 0 and finite, got inf"),
        ({"rotation": -1.0}, "--rotation must be >= 0 and finite, got -1.0"),
        ({"momentum": 1.0}, "--momentum must be >= 0 and < 1, got 1.0"),
        ({"milestones": (60, 60)}, "--milestones must be rising epochs >= 1, got 60 60"),
        ({"milestones": (0, 60)}, "--milestones must be rising epochs >= 1, got 0 60"),
    ],
)
def test_refused(options, sentence):
    with pytest.raises(TrainerError, match=sentence):
        check_recipe(TrainingOptions(**options))
