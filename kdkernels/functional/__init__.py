"""The public functions: checks, then the compiled op of the tensors' device or the PyTorch reference.

What they all take. Numbers: Python's and NumPy's scalars; for torch.compile the latter are arrays, so that inside a
graph only the modules of `kdkernels.nn` take them, as attributes. Flags: bools alone. Labels and indices: any integer
dtype, cast to int64 once; `ignore_index` is compared with their values (in uint8 it may be 255, and never -100).
Tensors are dense: neither nested nor sparse nor quantized. Logits have at most 2^24 classes.

A temperature may be a tensor of one number, of shape [] or [1]. In host memory it is read, and checked. On a device,
in a graph being traced or inside a `torch.func` transform it is not read, since that would wait: it has to be on the
device of the other tensors, and T <= 0 makes the loss NaN. Except for `info_nce` it is a constant: one that requires
grad is a ValueError, unless gradients are switched off, and so is one with a forward-mode derivative.

A `denominator` may be a tensor of one number too, a constant, of any float or integer dtype and on any device. Its value
is not checked: where it is not > 0 the loss is NaN. A device is waited for only if it holds the denominator of logits in
host memory. With `reduction="sum"` and `"none"`, which divide by nothing, a denominator is a ValueError.
"""

from .class_range_cross_entropy import class_range_cross_entropy
from .decoupled_kl import decoupled_kl
from .dkpp_loss import dkpp_loss
from .dynamic_temperature_kl import dynamic_temperature_kl
from .info_nce import info_nce, supervised_contrastive
from .joint_cross_entropy import joint_cross_entropy
from .label_loss import cwtm_loss, label_smoothing_loss, virtual_teacher_loss
from .logit_rank import logit_rank
from .memory_bank import memory_bank_nce
from .multi_head_kl import multi_head_kl
from .peer_ensemble import gated_ensemble_loss, leave_one_out_loss, okddip_loss
from .peer_mixture import mean_probabilities, peer_attention
from .pseudo_labels import pseudo_labels
from .similarity import select_trusted_rows, similarity_kl, similarity_rank
from .softened_kl import kd_loss, soft_cross_entropy, softened_kl

__all__ = [
    "class_range_cross_entropy",
    "cwtm_loss",
    "decoupled_kl",
    "dkpp_loss",
    "dynamic_temperature_kl",
    "gated_ensemble_loss",
    "info_nce",
    "joint_cross_entropy",
    "kd_loss",
    "label_smoothing_loss",
    "leave_one_out_loss",
    "logit_rank",
    "mean_probabilities",
    "memory_bank_nce",
    "multi_head_kl",
    "okddip_loss",
    "peer_attention",
    "pseudo_labels",
    "select_trusted_rows",
    "similarity_kl",
    "similarity_rank",
    "soft_cross_entropy",
    "softened_kl",
    "supervised_contrastive",
    "virtual_teacher_loss",
]
