"""Several methods on the same data, over seeds and pairs of networks: ``python -m python_trainers.compare``.

A job is a method and, after a colon, what differs from its defaults; ``baseline`` is cross entropy alone:

    python -m python_trainers.compare --train-images 50 --seeds 8 --out out/compare --jobs baseline kd
        tf_kd:mode=reg born_again:loss=cwtm,generations=1 ka_dtd:adjust=lsr,temperature-mode=const

All jobs get the same recipe (--epochs, --learning-rate, ...) and data, and by seed the same few images and
wrong labels. Networks trained from labels are shared: the teacher of a pair is trained once, at --teacher if
that is given; a student's first version, its own teacher in tf_kd:mode=self and born_again, is the baseline
of that seed. Each run has its own folder under OUT. The same command continues an interrupted comparison: runs
that ended are read, not trained again; jobs, seeds and pairs can be added.

Written: table.md, summary.json, plot.png. Spread is the sample standard deviation over seeds. A published
figure stands beside ours where data set, networks and variant are the paper's; else it says "not comparable".
"""

import hashlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from python_trainers.common.checks import require_at_least
from python_trainers.common.console import run_from_console
from python_trainers.common.errors import TrainerError, require
from python_trainers.common.experiment import Experiment
from python_trainers.common.files import write_atomically, write_json
from python_trainers.common.jobs import BASELINE, Job, build_job
from python_trainers.common.models import require_network
from python_trainers.common.options import SMOKE_EPOCHS, DataOptions, MachineOptions, RunOptions
from python_trainers.common.plots import dot_plot
from python_trainers.common.recipe import TrainingOptions, check_recipe, recipe_configuration
from python_trainers.common.run import is_finished, read_summary, require_same
from python_trainers.common.teacher import Pretraining


@dataclass(frozen=True)
class Args(TrainingOptions, DataOptions, MachineOptions, RunOptions):
    """Options of a comparison; those of recipe and data hold for all jobs."""

    jobs: tuple[str, ...] = (BASELINE, "kd")  # METHOD or METHOD:OPTION=VALUE,...; baseline: labels alone
    seeds: int = 3  # runs of each job: --seed, --seed + 1, ...
    pairs: tuple[str, ...] = ("small_resnet/small_convnet",)  # TEACHER/STUDENT
    teacher: Path | None = None  # folder of the teacher, trained there if absent; None: under OUT
    teacher_epochs: int = 40  # of its training


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console("compare", Args, compare, argv, "Several methods, side by side.")


def compare(args: Args) -> dict[str, Any]:
    """Train what is missing, then write and print the table; returns the summary."""
    check(args)
    if args.smoke:
        args = replace(args, epochs=SMOKE_EPOCHS, teacher_epochs=SMOKE_EPOCHS)
    jobs = [build_job(text, pair, args, args.teacher_epochs) for pair in args.pairs for text in args.jobs]
    folder, accelerator = args.folder("compare"), Accelerator()
    keep_options(folder, args, accelerator)
    rows = []
    for job in jobs:
        summaries = [run(job, args, seed, accelerator) for seed in range(args.seed, args.seed + args.seeds)]
        rows.append(table_row(job, summaries))
    text, summary = table(rows, args), {"options": plain(args), "rows": rows}
    if accelerator.is_main_process:
        write_json(folder / "summary.json", summary)
        write_atomically(folder / "table.md", text.encode())
        dot_plot(
            folder / "plot.png",
            {
                pair: {row["job"]: row["accuracies"] for row in rows if row["pair"] == pair}
                for pair in args.pairs
            },
            title=f"{args.dataset}: points are seeds, diamonds mean ± sample standard deviation",
        )
    accelerator.print(f"\n{text}\nThe plot is {folder / 'plot.png'}, the figures are in summary.json beside it.")
    return summary


def run(job: Job, args: Args, seed: int, accelerator: Accelerator) -> dict[str, Any]:
    """The summary of the job's run with ``seed``: read if it ended, else trained."""
    pair, name = (text.translate(str.maketrans("/:=,", "----")) for text in (job.pair, job.text))
    folder = args.folder("compare") / pair / name / f"seed-{seed}"
    if is_finished(folder):
        return read_summary(folder)
    job_args = replace(job.args, seed=seed, out=folder)
    try:
        if plan := job.pretraining():
            teacher = from_labels(plan, job, args, seed, accelerator)
            if job.method is None:
                return read_summary(teacher)
            job_args = replace(job_args, teacher=teacher)
        return job.method.train(job_args)
    except TrainerError as error:
        raise TrainerError(f"job {job.text!r}, seed {seed}: {error}") from error


def from_labels(plan: Pretraining, job: Job, args: Args, seed: int, accelerator: Accelerator) -> Path:
    """The folder of the network that ``plan`` describes, trained there if it is not yet.

    Its name follows from all that decides the weights, so jobs that need the same network share it.
    """
    # What is trained on the whole split serves all seeds, unless the seed decides what is in the split.
    if not plan.few and args.noisy_labels == 0 and args.imbalance == 1:
        seed = args.seed
    recipe = recipe_configuration(job.args.recipe_of(plan))
    same_recipe = recipe == recipe_configuration(args)
    teacher = Pretraining(job.pair.partition("/")[0], args.teacher_epochs, few=False)
    if args.teacher is not None and plan == teacher and same_recipe:
        folder = args.teacher
    else:
        identity = json.dumps([asdict(plan), recipe], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        folder = args.folder("compare") / "from-labels" / f"{plan.network}-seed-{seed}-{digest}"
    if folder.suffix != ".pt" and not is_finished(folder):
        job_args = replace(job.args, seed=seed, teacher=folder, out=args.folder("compare"))
        Experiment("compare", job_args, accelerator=accelerator).teacher(plan=plan)
    return folder


def keep_options(folder: Path, args: Args, accelerator: Accelerator) -> None:
    """Write down what all jobs have in common; refuse a folder whose jobs had something else."""
    path, common = folder / "options.json", plain(args)
    for name in ("jobs", "seeds", "pairs", "out", "download"):
        del common[name]
    if path.exists():
        require_same(folder, json.loads(path.read_text()), common)
    elif accelerator.is_main_process:
        write_json(path, common)
    accelerator.wait_for_everyone()


def plain(args: Args) -> dict[str, Any]:
    """The options in JSON's types."""
    return json.loads(json.dumps(asdict(args), default=str))


def table_row(job: Job, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a job in percent; None for the spread of one run and for a teacher there is none of."""
    figures, preset = [summary["figures"] for summary in summaries], job.published()
    accuracies = [100 * figure["test_accuracy"] for figure in figures]
    teachers = [100 * figure["teacher_accuracy"] for figure in figures if "teacher_accuracy" in figure]
    return {
        "pair": job.pair,
        "job": job.text,
        "network": summaries[0]["configuration"]["network"],
        "accuracies": accuracies,
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seeds": len(accuracies),
        "teacher": statistics.mean(teachers) if teachers else None,
        "published": preset and preset.accuracy,
        "source": preset and preset.source,
    }


def table(rows: list[dict[str, Any]], args: Args) -> str:
    """The comparison as Markdown."""
    images = args.train_images or (f"{args.train_fraction:.0%} of the" if args.train_fraction else "all")
    lines = [
        f"Test accuracy in % on {args.dataset}, students on {images} training images, {args.epochs} epochs.",
        "",
        "| teacher/student | job | network trained | mean | spread | seeds | taught by | published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread, teacher = ("" if row[name] is None else f"{row[name]:.2f}" for name in ("spread", "teacher"))
        reported = "not comparable"
        if row["published"] is not None:
            reported = f"{row['published']:.2f} ({row['source']})"
        lines.append(
            f"| {row['pair']} | `{row['job']}` | {row['network']} | {row['mean']:.2f} | {spread} "
            f"| {row['seeds']} | {teacher} | {reported} |"
        )
    note = "Spread: sample standard deviation over seeds. Taught by: mean accuracy of the teachers."
    return "\n".join([*lines, "", note, ""])


def check(args: Args) -> None:
    """Refuse, before anything is trained, what would fail later; jobs are checked as they are built."""
    check_recipe(args)
    require_at_least(args, 1, "seeds", "teacher_epochs")
    require_at_least(args, 0, "seed")
    for name in ("jobs", "pairs"):
        given = getattr(args, name)
        different = given and len(set(given)) == len(given)
        require(different, f"--{name} must be one or more, all different, got {' '.join(given)}")
    for pair in args.pairs:
        networks = pair.split("/")
        require(len(networks) == 2, f"--pairs must be TEACHER/STUDENT, got {pair!r}")
        for network in networks:
            require_network(network)
    teachers = sorted({pair.partition("/")[0] for pair in args.pairs})
    require(
        args.teacher is None or len(teachers) == 1,
        f"--teacher is one network, --pairs have {', '.join(teachers)}; leave --teacher out, each is trained "
        "once under --out",
    )


if __name__ == "__main__":
    sys.exit(main())
