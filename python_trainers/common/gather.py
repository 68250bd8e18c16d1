"""What processes tell each other: the rows of a batch, of which each has a part, and statistics."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
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


def share_statistics(network: nn.Module, model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the first one's buffers of ``network``, and statistics of normalization in ``model``.

    On CPUs the statistics of batch normalization are each process's own: without this, each would test
    another network. Other buffers beside the network, such as memory banks, are equal in all processes.
    """
    if accelerator.num_processes == 1:
        return
    shared = {id(buffer): buffer for buffer in network.buffers()}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            shared |= {id(buffer): buffer for buffer in module.buffers()}
    for buffer in shared.values():
        torch.distributed.broadcast(buffer, src=0)
