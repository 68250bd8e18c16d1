"""`kdkernels::label_loss` for torch: see row_loss.py."""

from ..reference.label_loss import label_loss as _reference
from .row_loss import RowLoss

label_loss = RowLoss("label_loss", _reference)
