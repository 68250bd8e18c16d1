"""Tian et al. 2020 (CRD): their recipe, which others took over, and tables 1 and 2, which kd and crd reproduce.

CIFAR-100, the last epoch.
"""

from typing import Any

# Table, teacher, student, their accuracies from labels alone, those of the student by CRD, CRD+KD and KD. The
# CRD+KD of table 2 is not transcribed here.
PAIRS = (
    (1, "wrn_40_2", "wrn_16_2", 75.61, 73.26, 75.48, 75.64, 74.92),
    (1, "wrn_40_2", "wrn_40_1", 75.61, 71.98, 74.14, 74.38, 73.54),
    (1, "resnet56", "resnet20", 72.34, 69.06, 71.16, 71.63, 70.66),
    (1, "resnet110", "resnet20", 74.31, 69.06, 71.46, 71.56, 70.67),
    (1, "resnet110", "resnet32", 74.31, 71.14, 73.48, 73.75, 73.08),
    (1, "resnet32x4", "resnet8x4", 79.42, 72.50, 75.51, 75.46, 73.33),
    (1, "vgg13", "vgg8", 74.64, 70.36, 73.94, 74.29, 72.98),
    (2, "vgg13", "mobilenetv2_half", 74.64, 64.60, 69.73, None, 67.37),
    (2, "resnet50", "mobilenetv2_half", 79.34, 64.60, 69.11, None, 67.35),
    (2, "resnet50", "vgg8", 79.34, 70.36, 74.30, None, 73.81),
    (2, "resnet32x4", "shufflenetv1", 79.42, 70.50, 75.11, None, 74.07),
    (2, "resnet32x4", "shufflenetv2", 79.42, 71.82, 75.65, None, 74.45),
    (2, "wrn_40_2", "shufflenetv1", 75.61, 70.50, 76.05, None, 74.83),
)
MOBILE = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")


def recipe(network: str) -> dict[str, Any]:
    """How ``network`` is trained, by labels or by a teacher."""
    return {
        "epochs": 240,
        "batch_size": 64,
        "learning_rate": 0.01 if network in MOBILE else 0.05,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "schedule": "milestones",
        "milestones": (150, 180, 210),
        "decay": 0.1,
        "warmup_epochs": 0,
    }


def taught(teacher: str, student: str) -> dict[str, Any]:
    """Both networks with their recipes, which differ in the learning rate at most."""
    of_teacher = recipe(teacher)
    return {
        "dataset": "cifar100",
        "teacher_model": teacher,
        "student_model": student,
        **recipe(student),
        "teacher_epochs": of_teacher["epochs"],
        "teacher_learning_rate": of_teacher["learning_rate"],
    }
