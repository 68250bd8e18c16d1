"""What the tables of `compare` leave out of an online comparison: python docs/results/okddip_figures.py OUT

From the last line of every metrics.jsonl, means over the seeds, ± the sample standard deviation; accuracies in %.
"""

import json
import statistics
import sys
from pathlib import Path

from python_trainers.compare import readable


def last(run: Path) -> dict[str, float]:
    """Figures of the last epoch."""
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def with_spread(values: list[float], digits: int = 2, sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def row(ends: list[dict[str, float]]) -> list[str]:
    """Of one job, by seed."""
    cells = [f"{100 * statistics.mean(end['mean_accuracy'] for end in ends):.2f}"]
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
    print("job | mean_accuracy | diversity | attention_a_a | leader over its peers")
    for job in json.loads((out / "summary.json").read_text())["rows"]:
        if not job["job"].startswith("okddip"):
            continue
        folder = out / readable(job["pair"]) / readable(job["job"])
        if job["sweep"]:
            folder /= f"rate-{job['rate']:g}"
        print(job["job"], *row([last(run) for run in sorted(folder.glob("seed-*"))]), sep=" | ")


if __name__ == "__main__":
    main()
