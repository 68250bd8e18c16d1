"""Tian et al. 2020, tables 1 and 2: CIFAR-100, the last epoch.

``crd``, ``crd_kd`` and ``kd`` alone set the weights and leave data, networks and recipe as they are.
"""

from python_trainers.common.presets import Preset
from python_trainers.presets import tian

WEIGHTS = {
    "crd": {"ce_weight": 1.0, "kl_weight": 0.0, "crd_weight": 0.8},
    "crd_kd": {"ce_weight": 1.0, "kl_weight": 1.0, "crd_weight": 0.8},
    "kd": {"ce_weight": 0.1, "kl_weight": 0.9, "crd_weight": 0.0},
}
# The 16,384 negatives are the trainer's default where there are as many images of other classes.
CONTRAST = {
    "temperature": 4.0,
    "embed_dim": 128,
    "positive": "exact",
    "contrast_temperature": 0.07,
    "bank_momentum": 0.5,
}

PRESETS = {
    name: Preset(options=weights, accuracy=None, source="Tian et al. 2020, official code")
    for name, weights in WEIGHTS.items()
} | {
    f"cifar100-{name}-{teacher}-{student}": Preset(
        options={**tian.taught(teacher, student), **weights, **CONTRAST},
        accuracy=accuracy,
        source=f"Tian et al. 2020, table {table}; teacher {of_teacher:.2f} %, student from labels {alone:.2f} %",
    )
    for table, teacher, student, of_teacher, alone, *accuracies in tian.PAIRS
    for (name, weights), accuracy in zip(WEIGHTS.items(), accuracies, strict=True)
}
