"""One module per function of `kdkernels.functional`, holding its options. The functions document them."""

from . import logit_rank, memory_bank, peer_ensemble, pseudo_labels, row_losses, similarity
from .logit_rank import *
from .memory_bank import *
from .peer_ensemble import *
from .pseudo_labels import *
from .row_losses import *
from .similarity import *

__all__ = [
    *logit_rank.__all__,
    *memory_bank.__all__,
    *peer_ensemble.__all__,
    *pseudo_labels.__all__,
    *row_losses.__all__,
    *similarity.__all__,
]
