"""The roofline of a run, and how time and memory grow."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend has to be chosen first

from .tables import memory_bytes  # noqa: E402

STYLES = {  # of a side, in both plots
    "kdkernels": {"marker": "o", "linestyle": "-"},
    "eager": {"marker": "o", "linestyle": "--", "markerfacecolor": "none"},
}
LEAST_BYTES = 2**10  # a step that moves less is all overhead, which no roof is about


def roofline(document: dict, path: Path) -> None:
    """Operations per second against operations per byte, both the fewest that the loss needs, under what the machine copies
    and multiplies in the same run. Both sides of a loss are credited with the same operations."""
    timed = [r for r in document["results"] if "work" in r and sum(r["work"]["bytes"].values()) >= LEAST_BYTES]
    families = list(dict.fromkeys(r["family"] for r in timed))
    colours = {family: f"C{i}" for i, family in enumerate(families)}
    dtypes = [dtype for dtype in document["rates"] if any(r["dtype"] == dtype for r in timed)]
    figure, panels = plt.subplots(1, len(dtypes), figsize=(7 * len(dtypes) + 2, 6), squeeze=False, layout="constrained")
    for axes, dtype in zip(panels[0], dtypes):
        shown = [r for r in timed if r["dtype"] == dtype]
        for family in families:
            axes.plot([], [], "o", color=colours[family], label=family)
        intensities = []
        for r in shown:
            operations, moved = (sum(r["work"][kind].values()) for kind in ("operations", "bytes"))
            intensities.append(operations / moved)
            for side, style in STYLES.items():
                if found := r["contenders"].get(side):
                    rate = operations / found["microseconds"] / 1e3
                    axes.plot(operations / moved, rate, color=colours[r["family"]], **style)
        rates = document["rates"][dtype]
        span = [min(intensities) / 2, max(intensities) * 2]
        xs = [span[0] * (span[1] / span[0]) ** (i / 200) for i in range(201)]
        roof = [min(x * rates["bytes_per_second"], rates["operations_per_second"]) / 1e9 for x in xs]
        axes.plot(xs, roof, color="black", label="copy speed, matrix rate")
        axes.plot([], [], "o", color="grey", markerfacecolor="none", label="eager PyTorch (hollow)")
        axes.set(xscale="log", yscale="log", title=dtype, xlabel="operations per byte", ylabel="GFLOP/s")
        axes.grid(alpha=0.3)
    panels[0, -1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{document['machine']['device']}, CPU threads: {document['machine']['threads']}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def scaling(document: dict, path: Path) -> None:
    """A column for each sweep: time above, memory below."""
    sweeps = document["scaling"]
    figure, panels = plt.subplots(2, len(sweeps), figsize=(4 * len(sweeps), 7), squeeze=False, layout="constrained")
    measures = {"time, us": lambda found: found.get("microseconds"), "memory, bytes": memory_bytes}
    for column, sweep in zip(panels.T, sweeps):
        for axes, (label, measure) in zip(column, measures.items()):
            for side, style in STYLES.items():
                points = [(point["size"], measure(point.get(side, {}))) for point in sweep["points"]]
                axes.plot(*zip(*(point for point in points if point[1])), label=side, **style)
            axes.set(xscale="log", yscale="log", xlabel=sweep["axis"], ylabel=label)
            axes.grid(alpha=0.3)
        column[0].set_title(f"{sweep['loss']}, {sweep['fixed']}", fontsize=10)
    panels[0, 0].legend()
    figure.suptitle(f"{document['machine']['device']}, CPU threads: {document['machine']['threads']}")
    figure.savefig(path, dpi=100)
    plt.close(figure)
