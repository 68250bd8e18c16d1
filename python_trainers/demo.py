"""The same small network with and without a teacher, on few real images: ``python -m python_trainers.demo``.

Hinton, Vinyals, Dean 2015, section 6 ("Soft targets as regularizers"), on handwritten digits: a student
that sees five labelled images of each digit learns more from them when a teacher tells how it reads them.
Per seed, six students see the same 50 images under one-pixel shifts for the same number of steps:

    undistilled   labels alone
    distilled     labels and a teacher that was trained on the whole training split, 1,000 labelled images:
                  its knowledge of those is what is distilled
    teacher-free  labels and a hand-made teacher that knows nothing but the label (tf_kd, mode reg)
    online        labels and three peers on branches of its own trunk, which learn at the same time, each from
                  labels and the others, and are thrown away (okddip); nobody was trained before
    born again    taught by the undistilled student of its seed, from new weights (born_again, generation 1)
    rotations     labels and teacher as the distilled one, and what teacher and teacher's head make of images
                  turned by 90, 180 and 270 degrees (sskd); a step is 16 images four times, not 64

All but the born-again one start from the same weights, and all but the last get the same batches; they differ
in the loss and in the learning rate, which is the best of a small sweep, the same for each kind
(docs/results). "Three together" are no student but the mean probabilities of the undistilled one and of
generations 1 and 2. No student sees any other image, labelled or not; no network trains on the 797 test
images. All other options but the number of images, of generations and of images per step are the methods'
defaults.

A second table has three of them on all 1,000 images, 40 % of which have a wrong label; same teacher, each at
its best rate there.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from python_trainers import born_again, kd, okddip, sskd, tf_kd
from python_trainers.common.checks import option
from python_trainers.common.console import run_from_console
from python_trainers.common.errors import require
from python_trainers.common.files import write_atomically, write_json
from python_trainers.common.paired import percent
from python_trainers.common.plots import (
    AMBER,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    clean,
    save_figure,
)

# Rates: docs/results/digits-50.md, okddip.md, sskd.md; the teacher's is that of kd.
DISTILLED = kd.Args(train_images=50, learning_rate=0.01)
KINDS = {
    "undistilled": (kd, replace(DISTILLED, kl_weight=0.0, learning_rate=0.05)),
    "distilled": (kd, DISTILLED),
    "teacher-free": (tf_kd, tf_kd.Args(train_images=50, mode="reg", learning_rate=0.05)),
    "online": (okddip, okddip.Args(train_images=50, learning_rate=0.02)),
    "born again": (born_again, born_again.Args(train_images=50, generations=2, learning_rate=0.05)),
    # As many rows as the others in a step, and 62 steps an epoch, not 15.
    "rotations": (sskd, sskd.Args(train_images=50, batch_size=16, epochs=10, learning_rate=0.01)),
}
WRONG_LABELS = {"train_images": None, "noisy_labels": 0.4}
RATES_UNDER_WRONG_LABELS = {"undistilled": 0.05, "distilled": 0.02, "rotations": 0.02}  # sskd.md
TOGETHER = "three together"
COLOURS = {
    "undistilled": ORANGE,
    "distilled": BLUE,
    "teacher-free": GREEN,
    "online": AMBER,
    "born again": PURPLE,
    "rotations": SKY,
    TOGETHER: BLACK,
}


@dataclass(frozen=True)
class Args:
    """Options of the demo."""

    out: Path = Path("out/demo")  # folder to write; what is finished there is not trained again
    seeds: int = 8  # students of each kind
    noisy_seeds: int = 3  # the same of those under wrong labels


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "demo", Args, demonstrate, argv, "A student with and without a teacher, on few images."
    )


def demonstrate(args: Args) -> dict[str, Any]:
    """Train one teacher and ``seeds`` students of each kind; write and print what came out."""
    for name in ("seeds", "noisy_seeds"):
        seeds = getattr(args, name)
        require(seeds >= 2, f"{option(name)} must be >= 2, for there to be a spread, got {seeds}")
    teacher = args.out / "teacher"  # trained there by the first run that learns from it
    few = [train_students(args.out, teacher, seed) for seed in range(args.seeds)]
    noisy = [train_on_wrong_labels(args.out, teacher, seed) for seed in range(args.noisy_seeds)]

    first = few[0]["distilled"]
    summary = {
        **compare(few),
        "rate": {kind: options.learning_rate for kind, (_, options) in KINDS.items()},
        "wrong_labels": {**compare(noisy), "rate": RATES_UNDER_WRONG_LABELS},
        "teacher": 100 * first["teacher_accuracy"],
        "images": {
            "student": first["train_images"],
            "teacher": noisy[0]["distilled"]["train_images"],
            "test": first["test_images"],
        },
    }
    text = table(summary)
    write_json(args.out / "summary.json", summary)
    write_atomically(args.out / "table.txt", text.encode())
    plot(args.out / "demo.png", summary)
    print(f"\n{text}\nThe plot is {args.out / 'demo.png'}, the figures are in summary.json beside it.")
    return summary


def train(kind: str, folder: Path, **options: Any) -> dict[str, float]:
    """Final figures of a student, trained in ``folder``."""
    method, defaults = KINDS[kind]
    return method.train(replace(defaults, out=folder, **options))["figures"]


def train_students(out: Path, teacher: Path, seed: int) -> dict[str, dict[str, float]]:
    """Final figures of each student with ``seed``."""
    first = out / f"undistilled-{seed}"
    teachers = {"distilled": teacher, "born again": first, "rotations": teacher}
    figures = {}
    for kind in KINDS:
        taught = {"teacher": teachers[kind]} if kind in teachers else {}
        figures[kind] = train(kind, out / f"{kind.replace(' ', '-')}-{seed}", seed=seed, **taught)
    again = figures["born again"]
    return {
        **figures,
        "born again": {"test_accuracy": again["generation_1"]},
        TOGETHER: {"test_accuracy": again["ensemble_3"]},
    }


def train_on_wrong_labels(out: Path, teacher: Path, seed: int) -> dict[str, dict[str, float]]:
    """Final figures of the students that learn from all images, two in five under a wrong label."""
    return {
        kind: train(
            kind,
            out / f"wrong-labels-{kind}-{seed}",
            **WRONG_LABELS,
            learning_rate=rate,
            seed=seed,
            teacher=teacher,
        )
        for kind, rate in RATES_UNDER_WRONG_LABELS.items()
    }


def compare(figures: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Percent per seed and kind; mean and spread of each kind and of its gain over the undistilled one."""
    columns = {kind: percent([seed[kind]["test_accuracy"] for seed in figures]) for kind in figures[0]}
    gains = {
        kind: column.over(columns["undistilled"]) for kind, column in columns.items() if kind != "undistilled"
    }
    return {
        "per_seed": {kind: column.values for kind, column in columns.items()},
        "mean": {kind: column.mean for kind, column in columns.items()},
        "spread": {kind: column.spread for kind, column in columns.items()},
        "gain": {kind: gain.mean for kind, gain in gains.items()},
        "spread_of_gain": {kind: gain.spread for kind, gain in gains.items()},
    }


def table(summary: dict[str, Any]) -> str:
    """Both comparisons as text."""
    images = summary["images"]
    return "\n".join(
        [
            f"Test accuracy in %, {images['test']} test images of {DISTILLED.dataset}.",
            f"Student {DISTILLED.student_model} on {images['student']} labelled images; teacher "
            f"{DISTILLED.teacher_model} on {images['teacher']}: {summary['teacher']:.2f}.",
            "",
            *lines(summary),
            "",
            f"The same on {images['teacher']} images, {WRONG_LABELS['noisy_labels']:.0%} of them under wrong "
            "labels.",
            "",
            *lines(summary["wrong_labels"]),
            "",
            "spread: sample standard deviation over the seeds",
            "gain: over the undistilled student of the same seed, mean ± spread",
            "rate: of learning, the best of a sweep with other seeds and held-out images (docs/results)",
            "",
        ]
    )


def lines(comparison: dict[str, Any]) -> list[str]:
    """One comparison: a line per seed, then mean, spread, gain and rate."""
    columns = comparison["per_seed"]
    rows = [(str(seed), *row) for seed, row in enumerate(zip(*columns.values(), strict=True))]
    rows += [(name, *comparison[name].values()) for name in ("mean", "spread")]
    spreads = comparison["spread_of_gain"]
    gains = (f"{gain:+.2f} ± {spreads[kind]:.2f}" for kind, gain in comparison["gain"].items())
    return [
        f"{'seed':<8}" + "".join(f"{kind:>15}" for kind in columns),
        *(f"{label:<8}" + "".join(f"{value:15.2f}" for value in row) for label, *row in rows),
        f"{'gain':<23}" + "".join(f"{gain:>15}" for gain in gains),
        f"{'rate':<8}" + "".join(f"{rate:>15g}" for rate in comparison["rate"].values()),
    ]


def plot(path: Path, summary: dict[str, Any]) -> None:
    """A line of points per seed, mean and spread beside them, the teacher as a line."""
    columns, images = summary["per_seed"], summary["images"]
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for line in zip(*columns.values(), strict=True):
        axes.plot(range(len(columns)), line, color="#D8D8D8", linewidth=1, zorder=1)
    for place, (kind, colour) in enumerate(COLOURS.items()):
        mean, spread = summary["mean"][kind], summary["spread"][kind]
        axes.scatter([place] * len(columns[kind]), columns[kind], color=colour, s=28, zorder=2)
        axes.errorbar(place + 0.14, mean, spread, color=colour, fmt="D", markersize=7, capsize=5, linewidth=2)
        axes.annotate(
            f"{mean:.1f} ± {spread:.1f}", (place + 0.2, mean), color=colour, va="center", fontweight="bold"
        )
    axes.axhline(summary["teacher"], color=GREY, linestyle="--", zorder=1)
    axes.annotate(
        f"teacher, from {images['teacher']} images: {summary['teacher']:.1f}",
        (len(columns) / 2 - 0.5, summary["teacher"]),
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        color=GREY,
    )
    axes.set(xlim=(-0.5, len(columns) - 0.2), ylabel=f"test accuracy (%), {images['test']} images")
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(axis="x", length=0)
    gain, seeds = summary["gain"]["distilled"], len(columns["distilled"])
    figure.suptitle(
        f"The same student, the same {images['student']} digits: {gain:+.1f} points from the teacher"
    )
    axes.set_title(f"{seeds} seeds, joined by lines; diamonds: mean ± sample standard deviation", fontsize=9)
    clean(axes)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
