"""Where autocast is switched off: it would round what is computed in float32, and refuses to stack tensors of a half
dtype that is not its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def exact(tensor: Tensor) -> AbstractContextManager:
    """No autocast on the device of this tensor; there is none on meta to begin with."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
