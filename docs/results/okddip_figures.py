"""What the tables of `compare` leave out of an online comparison: python docs/results/okddip_figures.py OUT

From the last line of every metrics.jsonl, means over the seeds, ± the sample standard deviation; accuracies in %.
"""

import json
import statistics
import sys
from pathlib import Path


def last(run: Path) -> dict[str, float]:
    """Figures of the last epoch."""
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def with_spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def row(ends: list[dict[str, float]], labels_alone: list[dict[str, float]]) -> list[str]:
    """Of one job, by seed: `labels_alone` are the baselines of the same seeds."""
    gains = [100 * (end["test_accuracy"] - plain["test_accuracy"]) for end, plain in zip(ends, labels_alone, strict=True)]
    means = (100 * statistics.mean(end[name] for end in ends) for name in ("mean_accuracy", "ensemble_accuracy"))
    cells = [with_spread(gains, sign="+"), *(f"{mean:.2f}" for mean in means)]
    cells.append(with_spread([end["diversity"] for end in ends], digits=3))
    peers = [a for a in range(1, len(ends[0])) if f"attention_{a}_{a}" in ends[0]]
    if not peers:
        return cells
    cells.append(f"{statistics.mean(end[f'attention_{a}_{a}'] for end in ends for a in peers):.3f}")
    if f"accuracy_{len(peers) + 1}" in ends[0]:  # there is a leader
        above = (end["test_accuracy"] - statistics.mean(end[f"accuracy_{a}"] for a in peers) for end in ends)
        cells.append(with_spread([100 * gain for gain in above], sign="+"))
    return cells


def main() -> None:
    out = Path(sys.argv[1])
    print("job | gain | mean_accuracy | ensemble_accuracy | diversity | attention_a_a | leader over its peers")
    for job in sorted(out.glob("*/okddip*")):
        seeds = sorted(job.glob("seed-*"))
        labels_alone = [last(next(out.glob(f"from-labels/*-{run.name}-*"))) for run in seeds]
        print(job.name, *row([last(run) for run in seeds], labels_alone), sep=" | ")


if __name__ == "__main__":
    main()
