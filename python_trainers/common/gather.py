"""What a loss over the whole batch needs when every process has a part of it."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def whole_batch(part: Tensor, accelerator: Accelerator) -> Tensor:
    """The rows of all processes, ``part`` [B / processes, ...] being this one's: [B, ...], in batch order.

    The gradient is exact where every process computes the same loss from the result: each row receives the
    sum of the processes' gradients, which data-parallel training divides by their number.
    """
    if accelerator.num_processes == 1:
        return part
    # Batches deals a batch out in turn: image j of process p was its image j * processes + p.
    return torch.stack(all_gather(part.contiguous()), dim=1).flatten(0, 1)
