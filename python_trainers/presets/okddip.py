"""Chen et al. 2020, tables 1, 2 and 4: CIFAR-10 and CIFAR-100, four students, the best epoch on the test set.

Of okddip the figure is the leader's, of its rivals the mean of the four, ``mean_accuracy``; without a leader
(table 4) that of all together, ``ensemble_accuracy``. The baseline is a run of ``kd --kl-weight 0``.

Two networks differ from the authors'. Their branches of VGG-16 drop half of the inputs of the linear layers,
ours none, as in their other VGG-16; and the attention reads what enters the last of these layers, theirs the
first. Their branches of DenseNet have one last block for all, each of ours has its own.
"""

from python_trainers.common.presets import Preset

METHODS = (
    ("independent", "branch"),
    ("dml", "network"),
    ("cl_ilr", "branch"),
    ("one", "branch"),
    ("okddip", "network"),
    ("okddip", "branch"),
)
# Errors in % from labels alone, then of the methods in this order.
CIFAR10 = {
    "densenet_40_12": (6.87, 6.97, 6.50, 7.02, 6.85, 5.94, 6.48),
    "resnet32": (6.34, 5.99, 6.18, 6.06, 5.94, 5.62, 5.58),
    "vgg16_fc": (6.12, 6.03, 5.94, 6.22, 6.16, 5.88, 5.87),
    "resnet110_bottleneck": (5.46, 4.95, 5.68, 4.88, 5.02, 4.54, 4.56),
    "wrn_20_8": (5.27, 5.35, 5.04, 5.12, 5.29, 4.84, 5.06),
}
CIFAR100 = {
    "densenet_40_12": (28.97, 29.20, 26.64, 28.61, 28.76, 26.10, 28.34),
    "resnet32": (28.76, 27.84, 26.47, 27.44, 26.50, 25.40, 25.63),
    "vgg16_fc": (26.19, 25.81, 25.33, 25.62, 25.63, 24.88, 25.15),
    "resnet110_bottleneck": (24.12, 23.54, 22.50, 21.56, 21.67, 21.09, 21.14),
    "wrn_20_8": (22.50, 21.85, 20.21, 20.44, 21.19, 19.63, 20.06),
}
# CIFAR-100, errors of four branches together by method; of okddip without a leader.
TOGETHER = {
    "vgg16_fc": {"cl_ilr": 25.56, "one": 25.54, "okddip": 24.95, "independent": 25.62},
    "resnet32": {"cl_ilr": 27.01, "one": 24.90, "okddip": 23.45, "independent": 23.74},
    "resnet110_bottleneck": {"cl_ilr": 20.19, "one": 20.14, "okddip": 19.54, "independent": 20.18},
}


def _recipe(method: str) -> dict[str, object]:
    return {
        "epochs": 300,
        "batch_size": 128,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "milestones",
        "milestones": (150, 225),
        "decay": 0.1,
        "warmup_epochs": 0,
        "temperature": 3.0,
        "kl_weight": 1.0,
        "mix": "logits",
        "pairwise": False,
        "rampup_epochs": 0 if method == "dml" else 80,
    }


def _options(dataset: str, student: str, method: str, structure: str) -> dict[str, object]:
    return {
        "dataset": dataset,
        "student_model": student,
        "method": method,
        "structure": structure,
        "students": 4,
        **_recipe(method),
    }


def _together(dataset: str, student: str, method: str, structure: str) -> str:
    """What table 4 adds on the run of table 2."""
    error = TOGETHER.get(student, {}).get(method)
    if dataset != "cifar100" or structure != "branch" or method == "okddip" or error is None:
        return ""
    return f"; all four together {100 - error:.2f} % (table 4)"


PRESETS = {
    f"{dataset}-{method}-{structure}-{student}": Preset(
        options=_options(dataset, student, method, structure),
        accuracy=round(100 - error, 2),
        quantity="test_accuracy" if method == "okddip" else "mean_accuracy",
        source=f"Chen et al. 2020, table {table}, {'leader' if method == 'okddip' else 'mean of four'}, best epoch; "
        f"from labels alone {100 - alone:.2f} %{_together(dataset, student, method, structure)}",
    )
    for table, dataset, errors in ((1, "cifar10", CIFAR10), (2, "cifar100", CIFAR100))
    for student, (alone, *of_methods) in errors.items()
    for (method, structure), error in zip(METHODS, of_methods, strict=True)
} | {
    f"cifar100-leaderless-branch-{student}": Preset(
        options={**_options("cifar100", student, "okddip", "branch"), "leader": False},
        accuracy=round(100 - errors["okddip"], 2),
        quantity="ensemble_accuracy",
        source="Chen et al. 2020, table 4, all four together, best epoch",
    )
    for student, errors in TOGETHER.items()
}
