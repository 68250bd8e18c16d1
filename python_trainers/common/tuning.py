"""Choosing a learning rate: every job tries the same rates, none of which looks at a test image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from python_trainers.common.errors import Diverged, require
from python_trainers.common.paired import Sample, percent

HELD_OUT = 0.2  # share of the training split that tuning runs are measured on and do not learn from
SEEDS_ABOVE = 1000  # tuning seeds begin so far above the table's


@dataclass(frozen=True)
class Sweep:
    """Validation accuracy in percent over the tuning seeds at each rate; None: training diverged."""

    accuracies: dict[float, Sample | None]

    @property
    def best(self) -> float:
        """The rate of the largest mean; the smallest of several."""
        means = {rate: sample.mean if sample else -math.inf for rate, sample in self.accuracies.items()}
        return max(sorted(means), key=means.__getitem__)

    @property
    def best_is_at_the_edge(self) -> bool:
        """Whether a rate that was not tried might be better."""
        return self.best in (min(self.accuracies), max(self.accuracies))


def sweep(rates: Sequence[float], seeds: Sequence[int], train: Callable[[float, int], float]) -> Sweep:
    """Try every rate; ``train(rate, seed)`` gives the share of validation images that are right."""

    def accuracies(rate: float) -> Sample | None:
        try:
            return percent([train(rate, seed) for seed in seeds])
        except Diverged:
            return None

    found = {rate: accuracies(rate) for rate in rates}
    tried = " ".join(f"{rate:g}" for rate in rates)
    require(any(found.values()), f"training diverged at each of --rates {tried}; try smaller ones")
    return Sweep(found)
