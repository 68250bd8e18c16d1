"""Plots of a run, in colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""

import io
import itertools
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from python_trainers.common.files import write_atomically
from python_trainers.common.paired import Sample

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER = "#56B4E9", "#E69F00"
GREY, BLACK = "#6E6E6E", "#000000"
EIGHT = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, GREY, BLACK)  # easiest to tell apart first


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
    losses: Mapping[str, str],  # name in the history -> label, one line each
    accuracies: Mapping[str, str],  # the same
    teacher_accuracy: float | None = None,
) -> None:
    """Losses on the left, test accuracies on the right, over epochs."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    epochs = [entry["epoch"] for entry in history]
    for (name, label), colour in zip(losses.items(), (GREY, BLUE, ORANGE, GREEN), strict=False):
        left.plot(epochs, [entry[name] for entry in history], color=colour, label=label)
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    left.legend(framealpha=0.8, edgecolor="none")  # lines may run behind it
    for (name, label), colour in zip(accuracies.items(), (BLUE, ORANGE, GREEN), strict=False):
        percent = [100 * entry[name] for entry in history]
        right.plot(epochs, percent, color=colour, label=f"{label}, {percent[-1]:.1f} at the end")
    if teacher_accuracy is not None:
        label = f"teacher, {100 * teacher_accuracy:.1f}"
        right.axhline(100 * teacher_accuracy, color=GREY, linestyle="--", label=label)
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        clean(axes)
    save_figure(figure, path)


def stacked_shares(path: Path, panels: Mapping[str, Mapping[str, list[float]]], *, title: str) -> None:
    """Shares in [0, 1] over epochs, one on top of the other: a panel per key, in it an area per name."""
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2 + 2.4 * columns, 0.8 + 2.4 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    all_axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    names = list(next(iter(panels.values())))
    colours = list(itertools.islice(itertools.cycle(EIGHT), len(names)))
    for axes in all_axes.flat[len(panels) :]:
        axes.set_visible(False)
    for place, (axes, (name, panel)) in enumerate(zip(all_axes.flat, panels.items(), strict=False)):
        epochs = range(1, len(panel[names[0]]) + 1)
        areas = axes.stackplot(epochs, *panel.values(), colors=colours, alpha=0.85, edgecolor="white")
        axes.set_title(name, fontsize=10)
        axes.set(xlim=(1, max(len(epochs), 2)), ylim=(0, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        if place % columns == 0:
            axes.set_ylabel("share")
        if place + columns >= len(panels):  # the last of its column
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
    figure.legend(areas, names, loc="outside right center", frameon=False, reverse=True)
    save_figure(figure, path)


def dot_plot(path: Path, panels: dict[str, dict[str, list[float]]], *, title: str) -> None:
    """Accuracies in percent: a panel per key, in it a line per name with its points, mean and spread."""
    lines = max(len(panel) for panel in panels.values())
    figure = Figure(figsize=(8, len(panels) * (1.0 + 0.4 * lines)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    all_axes = figure.subplots(len(panels), 1, squeeze=False).flat
    for axes, (name, panel) in zip(all_axes, panels.items(), strict=True):
        for height, values in enumerate(panel.values()):
            sample = Sample(tuple(values))
            axes.scatter(values, [height] * len(values), color=GREY, s=14, alpha=0.6)
            axes.errorbar(
                sample.mean, height, xerr=sample.spread or 0.0, color=BLUE, fmt="D", markersize=6, capsize=4
            )
        axes.set(title=name, xlabel="test accuracy (%)", ylim=(len(panel) - 0.5, -0.5))
        axes.set_yticks(range(len(panel)), panel)
        clean(axes)
        axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    save_figure(figure, path)
