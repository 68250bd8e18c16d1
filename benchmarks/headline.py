"""The short table of the README: eight losses, one row each, none of them noisy."""

from __future__ import annotations

from . import tables

NOISY = 0.15  # a row with a spread beyond it is refused
# Loss -> shape: every engine, and batches so small that overhead is most of the time. No row loss on more than a few MB: fresh
# pages make its steps noisy on a virtual machine. docs/benchmarks.md has those shapes, with their spreads.
ROWS = {
    "softened_kl": (256, 1000),
    "kd_loss": (256, 1000),
    "label_smoothing_loss": (128, 100),
    "dkpp_loss": (128, 100),
    "info_nce": (4096, 4096, 128),
    "supervised_contrastive": (256, 256, 128),
    "memory_bank_nce": (64, 16384, 128, 50_000),
    "okddip_loss": (64, 3, 1000, 64),
}


def table(documents: list[dict]) -> str:
    """Of one float32 run. ValueError where a row was not measured or is noisy."""
    (document,) = documents
    facts = document["machine"]
    rows = [row_of(document, loss, shape) for loss, shape in ROWS.items()]
    names = ("loss", "shape", "kdkernels, us", "over eager", "over torch.compile", "peak memory, MB (eager)")
    return (
        f"{facts['device']}, CPU threads: {facts['threads']}, {facts['instruction_set']}; float32, "
        f"torch {facts['versions']['torch']}.\n\n{tables.markdown(zip(names, zip(*rows)))}"
    )


def row_of(document: dict, loss: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    key = (loss, shape, "float32")
    result = next((r for r in document["results"] if (r["loss"], tuple(r["shape"]), r["dtype"]) == key), None)
    if result is None:
        raise ValueError(f"{loss} {shape} was not measured; run python -m benchmarks --headline")
    ours, eager, compiled = (result["contenders"][name] for name in ("kdkernels", "eager", "compile"))
    spread = max(ours["spread"], eager["over_spread"], compiled["over_spread"])
    if spread > NOISY:
        raise ValueError(
            f"{loss} {shape} has a spread of {100 * spread:.0f} %, at most {100 * NOISY:.0f} % is shown; measure it again "
            "on a quiet machine"
        )
    return (
        f"`{loss}`",
        tables.shape(result),
        tables.microseconds(ours),
        tables.times(eager),
        tables.times(compiled),
        tables.beside(tables.memory(ours), tables.memory(eager)),
    )
