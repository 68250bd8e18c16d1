"""Devices, processes and precision: as accelerate's launcher, the machine or the user's own accelerator has them."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from python_trainers.common.errors import require
from python_trainers.common.options import StudentOptions
from python_trainers.common.trackers import require_tracker

# What accelerate's launcher sets where it is asked for ways to train that these loops do not have.
FOREIGN_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
FOREIGN_TYPES = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


def start_accelerator(args: StudentOptions, folder: Path) -> Accelerator:
    """Of the processes and the precision that the launcher asks for, on what the machine has."""
    for variable, way in FOREIGN_WAYS.items():
        require(
            os.environ.get(variable, "false").lower() != "true",
            f"these trainers do not train with {way}; launch them with --multi_gpu alone",
        )
    if args.log_with is not None:
        require_tracker(args.log_with)
    # Statistics of normalization are shared once an epoch, memory banks are equal in all processes.
    own_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    # accelerate joins torchrun's processes on CPUs only if it is told that they are to use these.
    cpu = launched() > 1 and not torch.cuda.is_available()
    return Accelerator(cpu=cpu, log_with=args.log_with, project_dir=folder, kwargs_handlers=[own_buffers])


def launched() -> int:
    """Processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def check_accelerator(accelerator: Accelerator, args: StudentOptions) -> None:
    """Refuse what these trainers do not do with an accelerator that is given."""
    require(
        accelerator.num_processes == launched(),
        f"the accelerator that is given knows {accelerator.num_processes} of {launched()} processes; on CPUs make it "
        "with Accelerator(cpu=True)",
    )
    way = accelerator.distributed_type
    require(
        way not in FOREIGN_TYPES and accelerator.parallelism_config is None,
        f"these trainers have data parallelism alone, the accelerator is of {way.value} and parallelism_config "
        f"{accelerator.parallelism_config}",
    )
    require(
        args.log_with is None,
        f"--log-with {args.log_with} is for the accelerator that a trainer starts itself; give this one the tracker: "
        "Accelerator(log_with=...)",
    )


def with_parts_of(accelerator: Accelerator, args: StudentOptions) -> StudentOptions:
    """The options with the gradient accumulation that the launcher, or the accelerator given, asks for."""
    parts = accelerator.gradient_accumulation_steps
    if parts in (1, args.grad_accum_steps):
        return args
    require(
        args.grad_accum_steps == 1,
        f"--grad-accum-steps {args.grad_accum_steps} contradicts the accelerator's gradient_accumulation_steps {parts}: "
        "give one of them",
    )
    args = replace(args, grad_accum_steps=parts)
    args.check()
    return args
