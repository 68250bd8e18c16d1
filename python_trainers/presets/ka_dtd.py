"""Our settings for KA and DTD: the paper's own hyper-parameters and figures are not transcribed here.

The recipe is that of Tian et al. 2020 (CRD), the rest keeps every temperature above 0.
"""

from python_trainers.common.presets import Preset

PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
RECIPE = {
    "epochs": 240,
    "batch_size": 64,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "milestones",
    "milestones": (150, 180, 210),
    "decay": 0.1,
    "warmup_epochs": 0,
    "teacher_epochs": 240,
    "temperature": 4.0,
    "beta": None,
    "gamma": 1.0,
    "smoothing": 0.1,
}
VARIANTS = {
    "kd": {"adjust": "none", "temperature_mode": "const"},
    "ka": {"adjust": "ps", "temperature_mode": "const"},
    "dtd": {"adjust": "none", "temperature_mode": "flsw"},
    "ka-dtd": {"adjust": "ps", "temperature_mode": "flsw"},
}

PRESETS = {
    f"cifar100-{name}-{teacher}-{student}": Preset(
        setting={
            "dataset": "cifar100",
            "teacher_model": teacher,
            "student_model": student,
            **variant,
        },
        recipe=RECIPE,
        accuracy=None,
        source="ours; recipe of Tian et al. 2020 (CRD)",
    )
    for teacher, student in PAIRS
    for name, variant in VARIANTS.items()
}
