"""Plots of a run, in colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from python_trainers.common.files import write_atomically

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"


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
