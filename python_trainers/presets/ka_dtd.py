"""Our settings for KA and DTD: the paper's own hyper-parameters and figures are not transcribed here.

The recipe is that of Tian et al. 2020 (CRD), the rest keeps every temperature above 0.
"""

from python_trainers.common.presets import Preset
from python_trainers.presets import tian

PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
LOSS = {"temperature": 4.0, "beta": None, "gamma": 1.0, "smoothing": 0.1}
VARIANTS = {
    "kd": {"adjust": "none", "temperature_mode": "const"},
    "ka": {"adjust": "ps", "temperature_mode": "const"},
    "dtd": {"adjust": "none", "temperature_mode": "flsw"},
    "ka-dtd": {"adjust": "ps", "temperature_mode": "flsw"},
}

PRESETS = {
    f"cifar100-{name}-{teacher}-{student}": Preset(
        options={**tian.taught(teacher, student), **variant, **LOSS},
        accuracy=None,
        source="ours; recipe of Tian et al. 2020 (CRD)",
    )
    for teacher, student in PAIRS
    for name, variant in VARIANTS.items()
}
