"""The same small network with and without a teacher, on few real images: ``python -m python_trainers.demo``.

Hinton, Vinyals, Dean 2015, section 6 ("Soft targets as regularizers"), on handwritten digits: a student
that sees five labelled images of each digit learns more from them when a teacher tells how it reads them.
Per seed, two students start from the same weights and see the same 50 images in the same batches, under
the same one-pixel shifts, for the same number of steps; they differ in the loss alone. The teacher was
trained on the whole training split, 1,000 labelled images: its knowledge of those is what is distilled.
No student sees any other image, labelled or not; no network trains on the 797 test images. All options
but the number of images are kd's defaults.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from matplotlib.figure import Figure

from python_trainers import kd
from python_trainers.common.console import run_from_console
from python_trainers.common.data import load_dataset
from python_trainers.common.errors import require
from python_trainers.common.files import write_atomically, write_json
from python_trainers.common.plots import BLUE, GREY, ORANGE, clean, save_figure

STUDENT = kd.Args(train_images=50)


@dataclass(frozen=True)
class Args:
    """Options of the demo."""

    out: Path = Path("out/demo")  # folder to write; what is finished there is not trained again
    seeds: int = 8  # students of each kind


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "demo", Args, demonstrate, argv, "A student with and without a teacher, on few images."
    )


def demonstrate(args: Args) -> dict[str, Any]:
    """Train one teacher and ``seeds`` pairs of students; write and print what came out."""
    require(args.seeds >= 2, f"--seeds must be >= 2, for there to be a spread, got {args.seeds}")
    teacher, dataset = args.out / "teacher", load_dataset(STUDENT.dataset, data_root=None)
    kd.obtain_teacher(STUDENT, teacher, dataset, Accelerator())
    pairs = []
    for seed in range(args.seeds):
        plain = replace(STUDENT, seed=seed, kl_weight=0.0, out=args.out / f"undistilled-{seed}")
        taught = replace(STUDENT, seed=seed, teacher=teacher, out=args.out / f"distilled-{seed}")
        pairs.append((kd.train(plain)["figures"], kd.train(taught)["figures"]))

    summary = {
        **compare([(plain["test_accuracy"], taught["test_accuracy"]) for plain, taught in pairs]),
        "teacher": 100 * pairs[0][1]["teacher_accuracy"],
        "images": {"student": STUDENT.train_images, "teacher": len(dataset.train), "test": len(dataset.test)},
        "options": {
            name: value for name, value in asdict(STUDENT).items() if not isinstance(value, Path | None)
        },
    }
    text = table(summary)
    write_json(args.out / "summary.json", summary)
    write_atomically(args.out / "table.txt", text.encode())
    plot(args.out / "demo.png", summary)
    print(f"\n{text}\nThe plot is {args.out / 'demo.png'}, the figures are in summary.json beside it.")
    return summary


def compare(accuracies: list[tuple[float, float]]) -> dict[str, Any]:
    """Percent per (undistilled, distilled) pair, with mean and spread: the sample standard deviation."""
    columns = {
        "undistilled": [100 * plain for plain, _ in accuracies],
        "distilled": [100 * taught for _, taught in accuracies],
        "difference": [100 * (taught - plain) for plain, taught in accuracies],
    }
    mean = {name: statistics.mean(column) for name, column in columns.items()}
    spread = {name: statistics.stdev(column) for name, column in columns.items()}
    return {
        "per_seed": columns,
        "mean": mean,
        "spread": spread,
        "ahead_by_more_than_spread": mean["difference"] > max(spread.values()),
    }


def table(summary: dict[str, Any]) -> str:
    """The comparison as text."""
    columns, mean, spread = summary["per_seed"], summary["mean"], summary["spread"]
    images, options = summary["images"], summary["options"]
    rows = [(str(seed), *row) for seed, row in enumerate(zip(*columns.values(), strict=True))]
    rows.append(("mean", *mean.values()))
    verdict = "more" if summary["ahead_by_more_than_spread"] else "NOT more"
    return "\n".join(
        [
            f"Test accuracy in %, {images['test']} test images of {options['dataset']}.",
            f"Student {options['student_model']} on {images['student']} labelled images; teacher "
            f"{options['teacher_model']} on {images['teacher']}: {summary['teacher']:.2f}.",
            "",
            f"{'seed':<8}" + "".join(f"{name:>13}" for name in columns),
            *(f"{label:<8}{plain:13.2f}{taught:13.2f}{gain:+13.2f}" for label, plain, taught, gain in rows),
            f"{'spread':<8}" + "".join(f"{value:13.2f}" for value in spread.values()),
            "",
            f"Distillation adds {mean['difference']:.2f} points, {verdict} than any spread.",
            "(spread: sample standard deviation over the seeds)",
            "",
        ]
    )


def plot(path: Path, summary: dict[str, Any]) -> None:
    """A pair of points per seed, mean and spread beside them, the teacher as a line."""
    columns, images = summary["per_seed"], summary["images"]
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.subplots()
    for pair in zip(columns["undistilled"], columns["distilled"], strict=True):
        axes.plot((0, 1), pair, color="#C8C8C8", linewidth=1, zorder=1)
    for place, name, colour, outwards in ((0, "undistilled", ORANGE, -0.18), (1, "distilled", BLUE, 0.18)):
        mean, spread = summary["mean"][name], summary["spread"][name]
        axes.scatter([place] * len(columns[name]), columns[name], color=colour, s=28, zorder=2)
        axes.errorbar(
            place + outwards, mean, spread, color=colour, fmt="D", markersize=7, capsize=5, linewidth=2
        )
        axes.annotate(
            f"{mean:.1f} ± {spread:.1f}",
            (place + 1.35 * outwards, mean),
            color=colour,
            ha="right" if outwards < 0 else "left",
            va="center",
            fontweight="bold",
        )
    axes.axhline(summary["teacher"], color=GREY, linestyle="--", zorder=1)
    axes.annotate(
        f"teacher, from {images['teacher']} images: {summary['teacher']:.1f}",
        (0.5, summary["teacher"]),
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        color=GREY,
    )
    axes.set(xlim=(-0.75, 1.75), ylabel=f"test accuracy (%), {images['test']} images")
    axes.set_xticks((0, 1), ("labels alone", "labels and teacher"))
    axes.tick_params(axis="x", length=0)
    gain, pairs = summary["mean"]["difference"], len(columns["difference"])
    figure.suptitle(
        f"The same student, the same {images['student']} digits: {gain:+.1f} points from the teacher"
    )
    axes.set_title(f"{pairs} seeds, joined in pairs; diamonds: mean ± sample standard deviation", fontsize=9)
    clean(axes)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
