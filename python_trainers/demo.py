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
in the loss alone. "Three together" are no student but the mean probabilities of the undistilled one and of
generations 1 and 2. No student sees any other image, labelled or not; no network trains on the 797 test
images. All options but the number of images, of generations and of images per step are the methods' defaults.

A second table has three of them on all 1,000 images, 40 % of which have a wrong label; same teacher.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from python_trainers import born_again, kd, okddip, sskd, tf_kd
from python_trainers.common.checks import option
from python_trainers.common.console import run_from_console
from python_trainers.common.data import load_dataset
from python_trainers.common.errors import require
from python_trainers.common.experiment import Experiment
from python_trainers.common.files import write_atomically, write_json
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

DISTILLED = kd.Args(train_images=50)
BORN_AGAIN = born_again.Args(train_images=50, generations=2)
TEACHER_FREE = tf_kd.Args(train_images=50, mode="reg")
ONLINE = okddip.Args(train_images=50)
# As many rows as the others in a step, and 62 steps an epoch, not 15.
ROTATIONS = sskd.Args(train_images=50, batch_size=16, epochs=10)
WRONG_LABELS = {"train_images": None, "noisy_labels": 0.4}
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
    teacher, dataset = args.out / "teacher", load_dataset(DISTILLED.dataset, data_root=None)
    Experiment("demo", replace(DISTILLED, out=args.out, teacher=teacher)).teacher()
    figures = [train_students(args.out, teacher, seed) for seed in range(args.seeds)]
    noisy = [train_on_wrong_labels(args.out, teacher, seed) for seed in range(args.noisy_seeds)]

    summary = {
        **compare(figures),
        "wrong_labels": compare(noisy),
        "teacher": 100 * figures[0]["distilled"]["teacher_accuracy"],
        "images": {
            "student": DISTILLED.train_images,
            "teacher": len(dataset.train),
            "test": len(dataset.test),
        },
        "options": {
            name: value for name, value in asdict(DISTILLED).items() if not isinstance(value, Path | None)
        },
    }
    text = table(summary)
    write_json(args.out / "summary.json", summary)
    write_atomically(args.out / "table.txt", text.encode())
    plot(args.out / "demo.png", summary)
    print(f"\n{text}\nThe plot is {args.out / 'demo.png'}, the figures are in summary.json beside it.")
    return summary


def train_students(out: Path, teacher: Path, seed: int) -> dict[str, dict[str, float]]:
    """Final figures of each student with ``seed``."""
    first = out / f"undistilled-{seed}"
    undistilled = kd.train(replace(DISTILLED, seed=seed, kl_weight=0.0, out=first))
    distilled = kd.train(replace(DISTILLED, seed=seed, teacher=teacher, out=out / f"distilled-{seed}"))
    teacher_free = tf_kd.train(replace(TEACHER_FREE, seed=seed, out=out / f"teacher-free-{seed}"))
    online = okddip.train(replace(ONLINE, seed=seed, out=out / f"online-{seed}"))
    again = born_again.train(replace(BORN_AGAIN, seed=seed, teacher=first, out=out / f"born-again-{seed}"))
    rotations = sskd.train(replace(ROTATIONS, seed=seed, teacher=teacher, out=out / f"rotations-{seed}"))
    return {
        "undistilled": undistilled["figures"],
        "distilled": distilled["figures"],
        "teacher-free": teacher_free["figures"],
        "online": online["figures"],
        "born again": {"test_accuracy": again["figures"]["generation_1"]},
        "rotations": rotations["figures"],
        TOGETHER: {"test_accuracy": again["figures"]["ensemble_3"]},
    }


def train_on_wrong_labels(out: Path, teacher: Path, seed: int) -> dict[str, dict[str, float]]:
    """Final figures of the students that learn from all images, two in five under a wrong label."""
    options = {**WRONG_LABELS, "seed": seed, "teacher": teacher}
    runs = {
        kind: method.train(replace(defaults, **options, **more, out=out / f"wrong-labels-{kind}-{seed}"))
        for kind, method, defaults, more in (
            ("undistilled", kd, DISTILLED, {"kl_weight": 0.0}),
            ("distilled", kd, DISTILLED, {}),
            ("rotations", sskd, ROTATIONS, {}),
        )
    }
    return {kind: summary["figures"] for kind, summary in runs.items()}


def compare(figures: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Percent per seed and kind; mean and spread (sample standard deviation) of each kind and of its gain."""
    columns = {kind: [100 * seed[kind]["test_accuracy"] for seed in figures] for kind in figures[0]}
    gains = {
        kind: [ours - plain for ours, plain in zip(column, columns["undistilled"], strict=True)]
        for kind, column in columns.items()
        if kind != "undistilled"
    }
    return {
        "per_seed": columns,
        "mean": {kind: statistics.mean(column) for kind, column in columns.items()},
        "spread": {kind: statistics.stdev(column) for kind, column in columns.items()},
        "gain": {kind: statistics.mean(gain) for kind, gain in gains.items()},
        "spread_of_gain": {kind: statistics.stdev(gain) for kind, gain in gains.items()},
    }


def table(summary: dict[str, Any]) -> str:
    """Both comparisons as text."""
    images, options = summary["images"], summary["options"]
    return "\n".join(
        [
            f"Test accuracy in %, {images['test']} test images of {options['dataset']}.",
            f"Student {options['student_model']} on {images['student']} labelled images; teacher "
            f"{options['teacher_model']} on {images['teacher']}: {summary['teacher']:.2f}.",
            "",
            *lines(summary),
            "",
            f"The same on {images['teacher']} images, {WRONG_LABELS['noisy_labels']:.0%} of them under wrong labels.",
            "",
            *lines(summary["wrong_labels"]),
            "",
            "spread: sample standard deviation over the seeds",
            "gain: over the undistilled student of the same seed, mean ± spread",
            "",
        ]
    )


def lines(comparison: dict[str, Any]) -> list[str]:
    """One comparison: a line per seed, then mean, spread and gain."""
    columns = comparison["per_seed"]
    rows = [(str(seed), *row) for seed, row in enumerate(zip(*columns.values(), strict=True))]
    rows += [(name, *comparison[name].values()) for name in ("mean", "spread")]
    spreads = comparison["spread_of_gain"]
    gains = (f"{gain:+.2f} ± {spreads[kind]:.2f}" for kind, gain in comparison["gain"].items())
    return [
        f"{'seed':<8}" + "".join(f"{kind:>15}" for kind in columns),
        *(f"{label:<8}" + "".join(f"{value:15.2f}" for value in row) for label, *row in rows),
        f"{'gain':<23}" + "".join(f"{gain:>15}" for gain in gains),
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
