"""The public functions: checks, then the compiled op of the tensors' device or the PyTorch reference."""

from .dkpp_loss import dkpp_loss
from .dynamic_temperature_kl import dynamic_temperature_kl
from .label_loss import cwtm_loss, label_smoothing_loss, virtual_teacher_loss
from .softened_kl import kd_loss, soft_cross_entropy, softened_kl

__all__ = [
    "cwtm_loss",
    "dkpp_loss",
    "dynamic_temperature_kl",
    "kd_loss",
    "label_smoothing_loss",
    "soft_cross_entropy",
    "softened_kl",
    "virtual_teacher_loss",
]
