"""Several methods on the same data, over seeds and pairs of networks: ``python -m python_trainers.compare``.

A job is a method and, after a colon, what differs from its defaults; ``baseline`` is cross entropy alone:

    python -m python_trainers.compare --train-images 50 --seeds 8 --out out/compare --jobs baseline kd
        tf_kd:mode=reg born_again:loss=cwtm,generations=1 ka_dtd:adjust=lsr,temperature-mode=const
        --rates 0.01 0.02 0.05 0.1

All jobs get the same recipe (--epochs, --batch-size, ...) and data, and by seed the same few images and wrong
labels. With --rates every job, the baseline included, is first trained at each of them with other seeds on
four fifths of the training split; the rate whose mean accuracy on the other fifth is best is the job's, for
all networks that it trains but the teacher of the pair. The test images have no part in it. Without --rates
all have --learning-rate.

Networks trained from labels are shared: the teacher of a pair is trained once, at --teacher if that is given;
a student's first version, its own teacher in tf_kd:mode=self and born_again, is the baseline of that seed and
rate. Each run has its own folder under OUT. The same command continues an interrupted comparison: runs that
ended are read, not trained again; jobs, seeds, rates and pairs can be added.

Written: table.md, summary.json, plot.png. Spread is the sample standard deviation over seeds; a gain is over
the baseline of the same seed. A published figure stands beside ours where data, networks, variant and recipe
are the paper's; else it says "not comparable".
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from python_trainers import kd
from python_trainers.common.checkpoint import is_weights_file
from python_trainers.common.checks import require_at_least, select
from python_trainers.common.comparison_table import table, table_rows
from python_trainers.common.console import run_from_console
from python_trainers.common.errors import TrainerError, require
from python_trainers.common.files import require_writable, write_atomically, write_json
from python_trainers.common.jobs import BASELINE, COMMON, RECIPE, Job, build_job
from python_trainers.common.models import require_network
from python_trainers.common.options import (
    SMOKE_EPOCHS,
    DataOptions,
    MachineOptions,
    RunOptions,
    check_machine,
)
from python_trainers.common.plots import dot_plot
from python_trainers.common.recipe import TrainingOptions, check_recipe, recipe_configuration
from python_trainers.common.run import is_finished, read_summary, require_same
from python_trainers.common.teacher import Pretraining
from python_trainers.common.tuning import HELD_OUT, SEEDS_ABOVE, Sweep, sweep

# Options with which a comparison may be continued in its folder, beside those of the machine.
CAN_BE_ADDED = ("jobs", "seeds", "rates", "tuning_seeds", "pairs", "out", "download")


@dataclass(frozen=True)
class Args(TrainingOptions, DataOptions, MachineOptions, RunOptions):
    """Options of a comparison; those of recipe and data hold for all jobs."""

    jobs: tuple[str, ...] = (BASELINE, "kd")  # METHOD or METHOD:OPTION=VALUE,...; baseline: labels alone
    seeds: int = 3  # runs of each job: --seed, --seed + 1, ...
    rates: tuple[float, ...] = ()  # learning rates, of which each job gets its best; (): --learning-rate
    tuning_seeds: int = 3  # runs of each job at each of --rates: --seed + 1000, --seed + 1001, ...
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
    for job in jobs if args.rates else ():
        require(
            job.args.learning_rate == args.learning_rate,
            f"job {job.text!r} has a rate of its own, which --rates are there to find: leave one of them out",
        )
    folder, accelerator = args.folder("compare"), Accelerator()
    require_writable(folder)
    keep_options(folder, args, accelerator)
    for job in jobs if args.teacher else ():  # now: a run that holds images out would train it without them
        if (plan := job.pretraining()) and not plan.few:
            from_labels(plan, job, args, args.seed)
    results = []
    for job in jobs:
        found = None
        if args.rates:
            found = tune(job, args)
            job = job.having(learning_rate=found.best)
        seeds = range(args.seed, args.seed + args.seeds)
        results.append((job, found, [run(job, args, seed) for seed in seeds]))
    rows = table_rows(results)
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
    accelerator.print(f"\n{text}\nThe plot is {folder / 'plot.png'}, the figures are in summary.json.")
    return summary


def tune(job: Job, args: Args) -> Sweep:
    """The job at each of ``--rates``: a comparison of its own, on other seeds, that holds images out.

    A teacher that ``--teacher`` names is taken as it is; others are trained without those images.
    """
    tuning = {"seed": args.seed + SEEDS_ABOVE, "validation": args.validation or HELD_OUT}
    args = replace(args, out=args.folder("compare") / "tuning", **tuning)

    def train(rate: float, seed: int) -> float:
        trial = job.having(learning_rate=rate, **tuning)
        return run(trial, args, seed)["figures"]["validation_accuracy"]

    return sweep(args.rates, range(args.seed, args.seed + args.tuning_seeds), train)


def run(job: Job, args: Args, seed: int) -> dict[str, Any]:
    """The summary of the job's run with ``seed``: read if it ended, else trained."""
    folder = args.folder("compare") / readable(job.pair) / readable(job.text)
    if args.rates:
        folder /= f"rate-{job.args.learning_rate:g}"
    folder /= f"seed-{seed}"
    if is_finished(folder):
        return read_summary(folder)
    job_args = replace(job.args, seed=seed, out=folder)
    try:
        if plan := job.pretraining():
            teacher = from_labels(plan, job, args, seed)
            if job.method is None:
                return read_summary(teacher)
            job_args = replace(job_args, teacher=teacher)
        return job.method.train(job_args)
    except TrainerError as error:
        raise type(error)(f"job {job.text!r}, seed {seed}: {error}") from error


def from_labels(plan: Pretraining, job: Job, args: Args, seed: int) -> Path:
    """The folder of the network that ``plan`` describes, trained there if it is not yet.

    The teacher of a pair has the recipe of the comparison, whatever the student's rate, but for what the job
    says of the teacher itself. The folder's name says all that decides the weights, so jobs share it.
    """
    # What is trained on the whole split serves all seeds, unless the seed decides what is in the split.
    if not plan.few and args.noisy_labels == 0 and args.imbalance == 1:
        seed = args.seed
    job_args = job.args if plan.few else replace(job.args, **select(args, *RECIPE))
    recipe = job_args.recipe_of(plan)
    own, common = recipe_configuration(recipe), recipe_configuration(args)
    different = {name: value for name, value in own.items() if value != common[name]}
    teacher = Pretraining(job.pair.partition("/")[0], args.teacher_epochs, few=False)
    if args.teacher is not None and plan == teacher and not different:
        folder = args.teacher
    else:
        images = "students-images" if plan.few else "all-images"
        options = [f"{name.replace('_', '-')}-{value}" for name, value in different.items()]
        name = "-".join([plan.network, images, f"{plan.epochs}-epochs", *options, f"seed-{seed}"])
        folder = args.folder("compare") / "from-labels" / readable(name)
    if not is_weights_file(folder) and not is_finished(folder):
        alone = kd.Args(**select(recipe, *COMMON), student_model=plan.network, kl_weight=0.0)
        kd.train(replace(alone, seed=seed, out=folder, smoke=False))  # its epochs are smoked already
    return folder


def readable(text: str) -> str:
    """``text`` as the name of a folder."""
    return text.translate(str.maketrans("/:=, ", "-----", "()'"))


def keep_options(folder: Path, args: Args, accelerator: Accelerator) -> None:
    """Write down what all jobs have in common; refuse a folder whose jobs had something else."""
    path, common = folder / "options.json", plain(args)
    for name in (*CAN_BE_ADDED, *(field.name for field in fields(MachineOptions))):
        del common[name]
    if path.exists():
        require_same(folder, json.loads(path.read_text()), common)
    elif accelerator.is_main_process:
        write_json(path, common)
    accelerator.wait_for_everyone()


def plain(args: Args) -> dict[str, Any]:
    """The options in JSON's types."""
    return json.loads(json.dumps(asdict(args), default=str))


def check(args: Args) -> None:
    """Refuse, before anything is trained, what would fail later; jobs are checked as they are built."""
    check_recipe(args)
    check_machine(args)
    require_at_least(args, 1, "seeds", "tuning_seeds", "teacher_epochs")
    require_at_least(args, 0, "seed")
    require(
        args.seeds <= SEEDS_ABOVE or not args.rates,
        f"--seeds must be <= {SEEDS_ABOVE} under --rates, whose seeds are above, got {args.seeds}",
    )
    for rate in args.rates:
        check_recipe(replace(args, learning_rate=rate))
    rates = " ".join(f"{rate:g}" for rate in args.rates)
    require(len(set(args.rates)) == len(args.rates), f"--rates must all be different, got {rates}")
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
