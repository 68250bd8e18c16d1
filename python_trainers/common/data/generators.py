"""The generators that anybody's code draws from: python's, numpy's and torch's on the CPU."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SEEDS = 2**32  # numpy takes no larger seed


def seed_generators(seed: int) -> None:
    """Seed all three, ``seed`` in [0, ``SEEDS``). GPUs' generators are left alone."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever is drawn or seeded within leaves no trace."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
