"""Every loss with its regimes and its published bounds; the tables of docs/numerics.md: `python tests/numerics_tables.py`."""

import math
import re
from pathlib import Path

import torch
from helpers import FLOATS
from numerics import Errors, Loss, measure
from numerics_features import (
    BANK_LOSSES,
    BANK_REGIMES,
    MIXTURES,
    PAIR_LOSSES,
    PAIR_REGIMES,
    PEER_LOSSES,
    PEER_REGIMES,
    SIMILARITY_LOSSES,
    SIMILARITY_REGIMES,
)
from numerics_rows import (
    DYNAMIC_LOSSES,
    DYNAMIC_REGIMES,
    LOSSES,
    PROBABILITY_LOSSES,
    PROBABILITY_REGIMES,
    REGIMES,
    STANDARDIZED_LOSSES,
    STANDARDIZED_REGIMES,
)

# Losses and the regimes they are measured in. A virtual teacher needs two classes.
FAMILIES = [
    ({name: loss for name, loss in LOSSES.items() if name != "virtual_teacher_loss"}, REGIMES),
    ({"virtual_teacher_loss": LOSSES["virtual_teacher_loss"]}, {k: v for k, v in REGIMES.items() if k != "1 class"}),
    (STANDARDIZED_LOSSES, STANDARDIZED_REGIMES),
    *((PROBABILITY_LOSSES[kind], PROBABILITY_REGIMES[kind]) for kind in PROBABILITY_LOSSES),
    (DYNAMIC_LOSSES, DYNAMIC_REGIMES),
    (SIMILARITY_LOSSES, SIMILARITY_REGIMES),
    (BANK_LOSSES, BANK_REGIMES),
    (PEER_LOSSES, PEER_REGIMES),
    (PAIR_LOSSES, PAIR_REGIMES),
    (MIXTURES, PEER_REGIMES),
]

# The bounds that the page publishes: roundings, and those of a gradient's largest number by loss and rows.
PAGE = (Path(__file__).parents[1] / "docs" / "numerics.md").read_text()
BOUND = int(re.search(r"at most (\d+) roundings", PAGE)[1])
OF_LARGEST = {
    (loss, rows): 2.0 ** int(power)
    for loss, rows, power in re.findall(r"^\| (.+?) \| (.+?) \| 2\^(\d+) \|", PAGE, re.MULTILINE)
}


def governing(name: str, regime: str) -> tuple[str, str]:
    """Which bound of OF_LARGEST a loss is held against."""
    pairs = (f"`{name}`", regime), ("every other", regime), ("every other", "every other")
    return next(pair for pair in pairs if pair in OF_LARGEST)


def worst(errors: list[Errors]) -> str:
    return " / ".join(f"{max(getattr(each, name) for each in errors):.2g}" for name in ("loss", "gradient"))


def print_roundings() -> None:
    """And those of a gradient's largest number, by the bound that they are held against."""
    print("| loss | float32 | float16 | bfloat16 | float64 | eager float32 | eager bfloat16 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    of_largest = {pair: dict.fromkeys(FLOATS, 0.0) for pair in OF_LARGEST}
    for losses, regimes in FAMILIES:
        for name, loss in losses.items():
            cells = []
            for dtype in FLOATS:
                found = {regime: measure(loss, make(dtype), "cpu") for regime, make in regimes.items()}
                cells.append(worst([*found.values()]))
                for regime, errors in found.items():
                    seen = of_largest[governing(name, regime)]
                    seen[dtype] = max(seen[dtype], *(x for x in errors.of_largest if not math.isnan(x)), 0.0)
            for dtype in (torch.float32, torch.bfloat16):
                cells.append(worst([measure(loss, make(dtype), "cpu", loss.eager) for make in regimes.values()]))
            print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
    print()
    print("| loss | rows | float32 | float16 | bfloat16 | float64 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (loss, rows), seen in of_largest.items():
        print(f"| {loss} | {rows} | {' | '.join(f'{roundings:.2g}' for roundings in seen.values())} |")


def print_relative(loss: Loss, regimes: dict) -> None:
    print("| rows | float32: loss | gradient | bfloat16: loss | gradient |")
    print("| --- | --- | --- | --- | --- |")
    for regime, make in regimes.items():
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            ours, eager = (measure(loss, make(dtype), "cpu", function) for function in (loss.ours, loss.eager))
            for name in ("relative_loss", "relative_gradient"):
                of_ours, of_eager = getattr(ours, name), getattr(eager, name)
                cells.append("" if math.isnan(of_ours) else f"{of_ours:.1g} ({of_eager:.1g})")
        if any(cells):
            print(f"| {regime} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_roundings()
    print()
    print_relative(LOSSES["softened_kl, forward"], REGIMES)
