"""Randomness that a seed fixes and a checkpoint can hold."""

import hashlib
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed


def make_reproducible(seed: int, cpu_threads: int | None = None, *, deterministic: bool = True) -> None:
    """Seed every generator, choose between deterministic and faster kernels, and set the CPU threads (None: as they are).

    Sums on the CPU are split between threads: another number of threads gives other last digits.
    """
    if cpu_threads is not None:
        torch.set_num_threads(cpu_threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this set
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs one write per tensor
    set_seed(seed)


def derived_seed(seed: int, *names: str | int) -> int:
    """A seed of 32 bits for one part of a run: neighbouring seeds and parts share nothing."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def random_states(accelerator: Accelerator) -> list[dict[str, torch.Tensor]]:
    """State of torch's global generators in every process, in order of rank (dropout draws from these)."""
    state = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return gather_object([state])


def restore_random_states(states: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """Put this process's generators back; a rank or device that the saved run lacked keeps its fresh seed."""
    if accelerator.process_index >= len(states):
        return
    state = states[accelerator.process_index]
    torch.set_rng_state(state["cpu"])
    if accelerator.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], accelerator.device)
