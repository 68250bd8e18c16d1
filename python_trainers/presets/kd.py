"""Tian et al. 2020, tables 1 and 2, row KD and the networks from labels alone."""

from python_trainers.common.presets import Preset
from python_trainers.presets import tian

LOSS = {"temperature": 4.0, "ce_weight": 0.1, "kl_weight": 0.9}
ALONE = {
    network: (table, accuracy)
    for table, teacher, student, of_teacher, of_student, *_ in tian.PAIRS
    for network, accuracy in ((teacher, of_teacher), (student, of_student))
}

PRESETS = {
    f"cifar100-kd-{teacher}-{student}": Preset(
        options={**tian.taught(teacher, student), **LOSS},
        accuracy=accuracy,
        source=f"Tian et al. 2020, table {table}; teacher {of_teacher:.2f} %, student from labels {alone:.2f} %",
    )
    for table, teacher, student, of_teacher, alone, *_, accuracy in tian.PAIRS
} | {
    f"cifar100-labels-{network}": Preset(
        options={
            "dataset": "cifar100",
            "student_model": network,
            **tian.recipe(network),
            **LOSS,
            "kl_weight": 0.0,
        },
        accuracy=accuracy,
        source=f"Tian et al. 2020, table {table}",
    )
    for network, (table, accuracy) in ALONE.items()
}
