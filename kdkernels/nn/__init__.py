"""One module per function of `kdkernels.functional`, holding its options. The functions document them."""

from .logit_rank import LogitRank
from .memory_bank import CRDLoss, MemoryBankNCE
from .peer_ensemble import GatedEnsembleLoss, LeaveOneOutLoss, MeanProbabilities, OKDDipLoss, PeerAttention
from .row_losses import (
    CWTMLoss,
    DKPPLoss,
    DynamicTemperatureKL,
    KDLoss,
    LabelSmoothingLoss,
    SoftCrossEntropy,
    RowLoss,
    VirtualTeacherLoss,
)
from .similarity import InfoNCE, SelectTrustedRows, SimilarityKL, SimilarityRank, SupervisedContrastive

__all__ = [
    "CRDLoss",
    "CWTMLoss",
    "DKPPLoss",
    "DynamicTemperatureKL",
    "GatedEnsembleLoss",
    "InfoNCE",
    "KDLoss",
    "LabelSmoothingLoss",
    "LeaveOneOutLoss",
    "LogitRank",
    "MeanProbabilities",
    "MemoryBankNCE",
    "OKDDipLoss",
    "PeerAttention",
    "SelectTrustedRows",
    "SimilarityKL",
    "SimilarityRank",
    "SoftCrossEntropy",
    "RowLoss",
    "SupervisedContrastive",
    "VirtualTeacherLoss",
]
