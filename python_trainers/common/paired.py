"""Figures over seeds: mean and sample standard deviation, and gains that are paired by seed.

Two methods under one seed see the same images, first weights and batches, so the difference within a seed
varies less than either figure.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Values over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None: of one value there is none."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def over(self, baseline: "Sample") -> "Sample":
        """The gain over ``baseline``, seed by seed; both hold the same seeds in the same order."""
        return Sample(tuple(a - b for a, b in zip(self.values, baseline.values, strict=True)))

    def signed(self) -> str:
        """Mean with its sign, and spread: ``+2.04 ± 1.20``."""
        return f"{self.mean:+.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


def percent(shares: Sequence[float]) -> Sample:
    """Shares in [0, 1] as percent."""
    return Sample(tuple(100 * share for share in shares))
