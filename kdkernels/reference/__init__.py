"""Every public function in plain PyTorch, under the same name and signature.

The readable definition of each loss, the oracle of the tests, what runs where no compiled library serves the
device, and the path of second and higher derivatives. Arguments are taken as already checked.
"""

from .dkpp_loss import dkpp_loss
from .dynamic_temperature_kl import dynamic_temperature_kl
from .label_loss import cwtm_loss, label_smoothing_loss, virtual_teacher_loss
from .logit_rank import logit_rank
from .memory_bank import memory_bank_nce
from .peer_ensemble import gated_ensemble_loss, leave_one_out_loss, okddip_loss
from .peer_mixture import mean_probabilities, peer_attention
from .similarity import info_nce, select_trusted_rows, similarity_kl, similarity_rank, supervised_contrastive
from .softened_kl import kd_loss, soft_cross_entropy, softened_kl

__all__ = [
    "cwtm_loss",
    "dkpp_loss",
    "dynamic_temperature_kl",
    "gated_ensemble_loss",
    "info_nce",
    "kd_loss",
    "label_smoothing_loss",
    "leave_one_out_loss",
    "logit_rank",
    "mean_probabilities",
    "memory_bank_nce",
    "okddip_loss",
    "peer_attention",
    "select_trusted_rows",
    "similarity_kl",
    "similarity_rank",
    "soft_cross_entropy",
    "softened_kl",
    "supervised_contrastive",
    "virtual_teacher_loss",
]
