"""Xu et al. 2020, tables 3 and 4: CIFAR-100, the best epoch on the test set.

Three sets of weights go with that one paper: those of the official code, of arXiv's text and of the
supplement of ECCV. With which of them the tables were made is not said: each pair has all three.
``code``, ``arxiv`` and ``eccv`` alone set the weights and leave data, networks and recipe as they are.
"""

from python_trainers.common.presets import Preset
from python_trainers.presets import tian

WEIGHTS = {
    "code": {"ce_weight": 0.1, "kl_weight": 0.9, "rotated_weight": 2.7, "similarity_weight": 10.0},
    "arxiv": {"ce_weight": 0.1, "kl_weight": 0.9, "rotated_weight": 10.0, "similarity_weight": 2.7},
    "eccv": {"ce_weight": 0.1, "kl_weight": 0.9, "rotated_weight": 5.0, "similarity_weight": 3.0},
}
SOURCES = {"code": "the official code", "arxiv": "arXiv 2006.07114", "eccv": "the supplement of ECCV"}
# Table, teacher, student, their accuracies from labels alone, that of the student by SSKD.
PAIRS = (
    (3, "wrn_40_2", "wrn_16_2", 76.46, 73.64, 76.04),
    (3, "wrn_40_2", "wrn_40_1", 76.46, 72.24, 76.13),
    (3, "resnet56", "resnet20", 73.44, 69.63, 71.49),
    (3, "resnet32x4", "resnet8x4", 79.63, 72.51, 76.20),
    (3, "vgg13", "vgg8", 75.38, 70.68, 75.33),
    (4, "vgg13", "mobilenetv2_half", 75.38, 65.79, 71.53),
    (4, "resnet50", "mobilenetv2_half", 79.10, 65.79, 72.57),
    (4, "resnet50", "vgg8", 79.10, 70.68, 75.76),
    (4, "resnet32x4", "shufflenetv1", 79.63, 70.77, 78.44),
    (4, "resnet32x4", "shufflenetv2", 79.63, 73.12, 78.61),
    (4, "wrn_40_2", "shufflenetv1", 76.46, 70.77, 77.40),
)
# The recipe of teacher and student is that of Tian et al. 2020.
STAGES = {
    "head_epochs": 60,
    "head_learning_rate": 0.05,
    "head_milestones": (30, 45),
    "temperature": 4.0,
    "rotated_temperature": 4.0,
    "similarity_temperature": 0.5,
    "rotated_ratio": 1.0,
    "similarity_ratio": 0.75,
}

PRESETS = {
    name: Preset(options=weights, accuracy=None, source=f"weights of {SOURCES[name]}")
    for name, weights in WEIGHTS.items()
} | {
    f"cifar100-{name}-{teacher}-{student}": Preset(
        options={**tian.taught(teacher, student), **STAGES, **weights},
        accuracy=accuracy,
        source=f"Xu et al. 2020, table {table}, best epoch; teacher {of_teacher:.2f} %, student from labels "
        f"{alone:.2f} %; weights of {SOURCES[name]}",
    )
    for table, teacher, student, of_teacher, alone, accuracy in PAIRS
    for name, weights in WEIGHTS.items()
}
