"""Every loss with its regimes, and the tables of docs/numerics.md: `python tests/numerics_tables.py`, two minutes."""

import math

import torch
from helpers import FLOATS
from numerics import Errors, Loss, measure
from numerics_features import BANK_LOSSES, BANK_REGIMES, PEER_LOSSES, PEER_REGIMES, SIMILARITY_LOSSES, SIMILARITY_REGIMES
from numerics_rows import LOSSES, REGIMES

# Losses and the regimes they are measured in. A virtual teacher needs two classes.
FAMILIES = [
    ({name: loss for name, loss in LOSSES.items() if name != "virtual_teacher_loss"}, REGIMES),
    ({"virtual_teacher_loss": LOSSES["virtual_teacher_loss"]}, {k: v for k, v in REGIMES.items() if k != "1 class"}),
    (SIMILARITY_LOSSES, SIMILARITY_REGIMES),
    (BANK_LOSSES, BANK_REGIMES),
    (PEER_LOSSES, PEER_REGIMES),
]


def worst(errors: list[Errors]) -> str:
    return " / ".join(f"{max(getattr(each, name) for each in errors):.2g}" for name in ("loss", "gradient"))


def print_roundings() -> None:
    print("| loss | float32 | float16 | bfloat16 | float64 | eager float32 | eager bfloat16 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for losses, regimes in FAMILIES:
        for name, loss in losses.items():
            runs = [(dtype, loss.ours) for dtype in FLOATS]
            runs += [(dtype, loss.eager) for dtype in (torch.float32, torch.bfloat16)]
            cells = [worst([measure(loss, make(dtype), "cpu", f) for make in regimes.values()]) for dtype, f in runs]
            print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


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
