"""Plots of a run, in colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""

import io
import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from python_trainers.common.files import write_atomically

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY = "#56B4E9"
GREY, BLACK = "#6E6E6E", "#000000"


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())


def clean(axes: Axes) -> None:
    """Leave only the ink that carries data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def learning_curves(
    path: Path,
    history: list[dict[str, float]],
    *,
    title: str,
    losses: dict[str, str],  # name in the history -> label, one line each
    teacher_accuracy: float | None = None,
) -> None:
    """Losses on the left, test accuracy on the right, over epochs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    for (name, label), colour in zip(losses.items(), (GREY, BLUE, ORANGE, GREEN), strict=False):
        left.plot(epochs, [entry[name] for entry in history], color=colour, label=label)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    left.legend(frameon=False)
    percent = [100 * entry["test_accuracy"] for entry in history]
    right.plot(epochs, percent, color=BLUE, label=f"student, {percent[-1]:.1f} at the end")
    if teacher_accuracy is not None:
        label = f"teacher, {100 * teacher_accuracy:.1f}"
        right.axhline(100 * teacher_accuracy, color=GREY, linestyle="--", label=label)
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        clean(axes)
    save_figure(figure, path)


def dot_plot(path: Path, panels: dict[str, dict[str, list[float]]], *, title: str) -> None:
    """Accuracies in percent: a panel per key, in it a line per name with its points, mean and spread."""
    lines = max(len(panel) for panel in panels.values())
    figure = Figure(figsize=(8, len(panels) * (1.0 + 0.4 * lines)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    all_axes = figure.subplots(len(panels), 1, squeeze=False).flat
    for axes, (name, panel) in zip(all_axes, panels.items(), strict=True):
        for height, values in enumerate(panel.values()):
            axes.scatter(values, [height] * len(values), color=GREY, s=14, alpha=0.6)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(
                statistics.mean(values), height, xerr=spread, color=BLUE, fmt="D", markersize=6, capsize=4
            )
        axes.set(title=name, xlabel="test accuracy (%)", ylim=(len(panel) - 0.5, -0.5))
        axes.set_yticks(range(len(panel)), panel)
        clean(axes)
        axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    save_figure(figure, path)
