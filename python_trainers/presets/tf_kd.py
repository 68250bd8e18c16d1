"""Yuan et al. 2020, tables 1, 2, 4, 5 and 9: means of three runs, the best epoch of each.

The settings are those of the official code; its KL is a mean over all entries, hence the multipliers.
"""

from collections.abc import Mapping
from typing import Any

from python_trainers.common.presets import Preset

MOBILE, SHUFFLE, R18, R50 = "tfkd_mobilenetv2", "tfkd_shufflenetv2", "resnet18", "resnet50"

# Teacher, student, accuracy of the student taught by it (kd), of the teacher taught by the student (re_kd).
TABLE_1 = (
    (R18, MOBILE, 71.05, 77.28),
    (R18, SHUFFLE, 72.05, 77.35),
    (R50, MOBILE, 71.04, 79.30),
    (R50, SHUFFLE, 72.15, 79.43),
)
# The same on CIFAR-10, with the alpha and temperature of CIFAR-100, which is our choice. The code standardizes its
# images with the statistics of CIFAR-100, too, we with their own.
TABLE_2 = ((R18, MOBILE, 91.69, 95.71),)
# Teacher, its epochs, student, accuracy.
TABLE_4 = (
    (R18, 1, MOBILE, 70.65),
    (R18, 1, SHUFFLE, 71.82),
    (R50, 50, MOBILE, 71.45),
    (R50, 50, SHUFFLE, 72.11),
    (R50, 50, R18, 77.23),
)
# Network, accuracy, alpha, temperature, multiplier.
TABLE_5 = (
    (MOBILE, 70.96, 0.95, 20.0, 1.0),
    (SHUFFLE, 72.23, 0.95, 20.0, 1.0),
    (R18, 77.10, 0.95, 6.0, 50.0),
)
# Network, accuracy from labels alone (baseline), by reg and by lsr; alpha, temperature, multiplier of reg.
TABLE_9 = (
    (MOBILE, 68.38, 70.88, 69.32, 0.95, 40.0, 1.0),
    (SHUFFLE, 70.34, 72.09, 70.83, 0.95, 10.0, 1.0),
    (R18, 75.87, 77.36, 77.26, 0.10, 20.0, 100.0),
)
# Images of a step; the learning rate is in proportion. ResNet-50 is trained from labels with 64, and ResNet-18 is
# taught by it with 64, but ResNet-50 is taught by others with 128.
BATCH, SMALL_BATCH = 128, 64
LABEL_SMOOTHING = {"smoothing": 0.1, "convention": "others"}


def _step(batch_size: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "learning_rate": 0.1 * batch_size / 128}


def _recipe(batch_size: int) -> dict[str, Any]:
    return {
        "epochs": 200,
        **_step(batch_size),
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "schedule": "milestones",
        "milestones": (60, 120, 160),
        "decay": 0.2,
        "warmup_epochs": 1,
        "rotation": 15.0,
    }


def _from_labels(network: str) -> int:
    """The batch with which ``network`` is trained from labels."""
    return SMALL_BATCH if network == R50 else BATCH


def _taught(
    mode: str,
    teacher: str,
    student: str,
    accuracy: float,
    table: int,
    *,
    dataset: str = "cifar100",
    teacher_epochs: int = 200,
) -> Preset:
    """One network learns from another; in re_kd it is the teacher that learns."""
    strong = mode == "re_kd" or student == R18
    of_teacher = {} if mode == "re_kd" else _step(_from_labels(teacher))
    return Preset(
        options={
            "dataset": dataset,
            "mode": mode,
            "teacher_model": teacher,
            "student_model": student,
            "teacher_epochs": teacher_epochs,
            **{f"teacher_{name}": value for name, value in of_teacher.items()},
            **_recipe(SMALL_BATCH if (teacher, student) == (R50, R18) else BATCH),
            **_loss(0.6 if strong else 0.95, 20.0, 1.0),
        },
        accuracy=accuracy,
        source=f"Yuan et al. 2020, table {table}, best epoch",
    )


def _alone(mode: str, student: str, accuracy: float, table: int, loss: Mapping[str, Any]) -> Preset:
    """A network that no other one teaches."""
    return Preset(
        options={
            "dataset": "cifar100",
            "mode": mode,
            "student_model": student,
            **_recipe(_from_labels(student)),
            **loss,
        },
        accuracy=accuracy,
        source=f"Yuan et al. 2020, table {table}, best epoch",
    )


def _loss(alpha: float, temperature: float, multiplier: float) -> dict[str, Any]:
    return {
        "alpha": alpha,
        "temperature": temperature,
        "multiplier": multiplier,
        "form": "code",
        "reduction": "elementmean",
    }


def _name(*parts: str) -> str:
    """Networks without the prefix that tells those of the official code from others of the same name."""
    return "-".join(part.removeprefix("tfkd_") for part in parts)


PRESETS: dict[str, Preset] = {}
for dataset, table, rows in (("cifar100", 1, TABLE_1), ("cifar10", 2, TABLE_2)):
    for teacher, student, by_teacher, by_student in rows:
        for mode, accuracy in (("kd", by_teacher), ("re_kd", by_student)):
            PRESETS[_name(dataset, mode, teacher, student)] = _taught(
                mode, teacher, student, accuracy, table, dataset=dataset
            )
for teacher, epochs, student, accuracy in TABLE_4:
    PRESETS[_name("cifar100-de_kd", teacher, student)] = _taught(
        "de_kd", teacher, student, accuracy, 4, teacher_epochs=epochs
    )
for net, accuracy, *loss in TABLE_5:
    PRESETS[_name("cifar100-self", net)] = _alone("self", net, accuracy, 5, _loss(*loss))
for net, baseline, reg, lsr, *loss in TABLE_9:
    PRESETS[_name("cifar100-baseline", net)] = _alone("baseline", net, baseline, 9, {})
    PRESETS[_name("cifar100-reg", net)] = _alone("reg", net, reg, 9, _loss(*loss))
    PRESETS[_name("cifar100-lsr", net)] = _alone("lsr", net, lsr, 9, LABEL_SMOOTHING)
PRESETS["cifar100-baseline-resnet50"] = _alone("baseline", R50, 78.16, 1, {})
