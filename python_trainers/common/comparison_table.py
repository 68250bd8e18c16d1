"""The table of a comparison: a row per job, its gains over the baseline, and how its rate was found."""

from collections.abc import Sequence
from typing import Any

from python_trainers.common.jobs import BASELINE, Job
from python_trainers.common.paired import Sample, percent
from python_trainers.common.task import Classification
from python_trainers.common.tuning import HELD_OUT, SEEDS_ABOVE, Sweep

HEADLINE = Classification.headline  # the figure of a run that the table shows
# A job at its rate, how that was found, the summary of each seed.
Result = tuple[Job, Sweep | None, list[dict[str, Any]]]


def table_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Figures of each job in percent; None for what there is none of.

    A gain is over the baseline of the same pair and seed, if both trained the same network.
    """
    baselines = {job.pair: summaries for job, _, summaries in results if job.method is None}
    return [row(job, found, summaries, baselines.get(job.pair)) for job, found, summaries in results]


def row(
    job: Job,
    found: Sweep | None,
    summaries: list[dict[str, Any]],
    baseline: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """What the table says of one job."""
    network, preset = summaries[0]["configuration"]["network"], job.published()
    accuracies, gain = test_accuracies(summaries), None
    if job.method is not None and baseline and baseline[0]["configuration"]["network"] == network:
        gain = accuracies.over(test_accuracies(baseline))
    teachers = [summary["figures"].get("teacher_accuracy") for summary in summaries]
    compared = preset and percent([summary["figures"][preset.quantity] for summary in summaries]).mean
    return {
        "pair": job.pair,
        "job": job.text,
        "network": network,
        "rate": job.args.learning_rate,
        "rate_at_the_edge": found is not None and found.best_is_at_the_edge,
        "sweep": found and {rate: sample and sample.values for rate, sample in found.accuracies.items()},
        "accuracies": accuracies.values,
        "mean": accuracies.mean,
        "spread": accuracies.spread,
        "gains": gain and gain.values,
        "gain": gain and gain.mean,
        "spread_of_gain": gain and gain.spread,
        "seeds": len(summaries),
        "teacher": None if None in teachers else percent(teachers).mean,
        "published": preset and preset.accuracy,
        "quantity": preset and preset.quantity,
        "same_quantity": compared,
        "source": preset and preset.source,
    }


def test_accuracies(summaries: list[dict[str, Any]]) -> Sample:
    """Of a job's runs, in percent."""
    return percent([summary["figures"][HEADLINE] for summary in summaries])


def table(rows: list[dict[str, Any]], args: Any) -> str:
    """The comparison as Markdown; ``args`` are its options."""
    images = args.train_images or (f"{args.train_fraction:.0%} of the" if args.train_fraction else "all")
    lines = [
        f"Test accuracy in % on {args.dataset}, students on {images} training images, {args.epochs} epochs.",
        "",
        "| teacher/student | job | network trained | rate | mean | spread | gain | seeds | taught by "
        "| published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread, teacher = ("" if row[name] is None else f"{row[name]:.2f}" for name in ("spread", "teacher"))
        rate = f"{row['rate']:g}" + (" (edge)" if row["rate_at_the_edge"] else "")
        gain = Sample(row["gains"]).signed() if row["gains"] else ""
        reported = "not comparable"
        if row["published"] is not None:
            reported = f"{row['published']:.2f} ({row['source']})"
            if row["quantity"] != HEADLINE:
                reported = f"{row['quantity']} {reported}, here {row['same_quantity']:.2f}"
        lines.append(
            f"| {row['pair']} | `{row['job']}` | {row['network']} | {rate} | {row['mean']:.2f} | {spread} "
            f"| {gain} | {row['seeds']} | {teacher} | {reported} |"
        )
    lines += [
        "",
        "Spread: sample standard deviation over seeds. Gain: over the baseline of the same seed, mean ± "
        "spread. Taught by: mean accuracy of the teachers.",
        "",
        f"Rate: {how_it_was_found(args) if args.rates else 'as given, tuned for no job.'}",
        "",
    ]
    return "\n".join([*lines, *(sweeps(rows, args) if args.rates else ())])


def how_it_was_found(args: Any) -> str:
    """The tuning in a sentence."""
    first = args.seed + SEEDS_ABOVE
    seeds = f"seeds {first} to {first + args.tuning_seeds - 1}" if args.tuning_seeds > 1 else f"seed {first}"
    return (
        f"the best of the second table, where each job was trained at each rate with the {seeds} and "
        f"tested on the {args.validation or HELD_OUT:.0%} of the training split that those runs held out; "
        "(edge): the smallest or largest that was tried."
    )


def sweeps(rows: list[dict[str, Any]], args: Any) -> list[str]:
    """What the choice of the rates went by, a line per job."""
    lines = [
        "Mean accuracy in % on the images held out, at each rate:",
        "",
        "| teacher/student | job | " + " | ".join(f"{rate:g}" for rate in args.rates) + " |",
        "| --- | --- |" + " --- |" * len(args.rates),
    ]
    for row in rows:
        means = (f"{Sample(found).mean:.2f}" if found else "diverged" for found in row["sweep"].values())
        lines.append(f"| {row['pair']} | `{row['job']}` | " + " | ".join(means) + " |")
    return [*lines, ""]
