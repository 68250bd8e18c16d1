"""The public functions: checks, then the compiled op of the tensors' device or the PyTorch reference."""

from .dkpp_loss import dkpp_loss
from .dynamic_temperature_kl import dynamic_temperature_kl
from .info_nce import info_nce, supervised_contrastive
from .label_loss import cwtm_loss, label_smoothing_loss, virtual_teacher_loss
from .logit_rank import logit_rank
from .memory_bank import memory_bank_nce
from .similarity import select_trusted_rows, similarity_kl, similarity_rank
from .softened_kl import kd_loss, soft_cross_entropy, softened_kl

__all__ = [
    "cwtm_loss",
    "dkpp_loss",
    "dynamic_temperature_kl",
    "info_nce",
    "kd_loss",
    "label_smoothing_loss",
    "logit_rank",
    "memory_bank_nce",
    "select_trusted_rows",
    "similarity_kl",
    "similarity_rank",
    "soft_cross_entropy",
    "softened_kl",
    "supervised_contrastive",
    "virtual_teacher_loss",
]
