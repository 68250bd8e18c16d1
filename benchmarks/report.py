"""Tables and plots of the numbers that `python -m benchmarks --json` wrote.

    python -m benchmarks.report RESULTS.json [--plots FOLDER] [--page PAGE.md]

Prints every table; `--plots` draws the roofline and the scaling; `--page` rewrites the section of a page that names these
results in the first of its two marks.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "<!-- speed: python -m benchmarks.report {} --page {} -->"
SECTION = re.compile(MARK.format(r"(?P<results>\S+)", r"(?P<page>\S+)") + r"\n.*?\n<!-- end of speed -->", re.DOTALL)
FLOORS = {"copy": "copy speed", "product": "the matrix rate"}


def summary(document: dict) -> str:
    """The machine, and a table for each kind of shape: what pages show."""
    results = document["results"]
    tables = [table([r for r in results if r["axes"] == axes]) for axes in dict.fromkeys(r["axes"] for r in results)]
    return "\n\n".join([machine(document), *tables])


def machine(document: dict) -> str:
    facts = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = "; ".join(
        f"{dtype}: copies {r['bytes_per_second'] / 1e9:.1f} GB/s, multiplies {r['operations_per_second'] / 1e12:.3g} TFLOP/s"
        for dtype, r in document["rates"].items()
    )
    return f"{facts['device']}, CPU threads: {facts['threads']}, {facts['instruction_set']}; {versions}.\n{rates}."


def table(results: list[dict]) -> str:
    """Of results of one kind of shape."""
    floor = FLOORS[next((r["floor"] for r in results if "floor" in r), "copy")]
    rows = [
        f"| loss | {results[0]['axes']} | dtype | kdkernels, us | over eager | over torch.compile "
        f"| share of {floor} | peak memory, MB (eager) | error of gradient (eager) |",
        "| --- " * 9 + "|",
    ]
    for r in results:
        ours, eager, compiled = (r["contenders"].get(name, {}) for name in ("kdkernels", "eager", "compile"))
        cells = [
            f"`{r['loss']}`",
            shape(r),
            r["dtype"],
            microseconds(ours),
            times(eager),
            times(compiled),
            share(r),
            beside(memory(ours), memory(eager)),
            beside(error(ours), error(eager)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def shape(result: dict) -> str:
    """As the axes are written: by `x`, and what does not belong to the batch after a comma."""
    sizes = iter(result["shape"])
    return ", ".join(" x ".join(str(next(sizes)) for _ in part.split(" x ")) for part in result["axes"].split(", "))


def microseconds(contender: dict) -> str:
    if "microseconds" not in contender:
        return ""
    return f"{contender['microseconds']:.0f} ± {100 * contender['spread']:.0f} %"


def times(contender: dict) -> str:
    """How many times longer than ours."""
    return f"{contender['over']:.1f}x" if "over" in contender else ""


def share(result: dict) -> str:
    return f"{100 * result['share_of_floor'][result['floor']]:.0f} %" if "floor" in result else ""


def memory(contender: dict) -> str:
    """The larger of what torch allocates, which sees no library's buffers, and of what the system counts, which sees no
    growth within pages that the process already has."""
    found = [contender[count] for count in ("peak_bytes", "resident_bytes") if count in contender]
    return f"{max(found) / 1e6:.3g}" if found else ""


def error(contender: dict, of: str = "gradient_error") -> str:
    return f"{contender[of]:.1e}" if of in contender else ""


def beside(ours: str, eager: str) -> str:
    return f"{ours} ({eager})" if eager else ours


def details(document: dict) -> str:
    """Every contender of every result, what is absent, and what was counted."""
    return "\n\n".join([contenders(document), absent(document), counted(document)])


def contenders(document: dict) -> str:
    rows = [
        "| loss | shape | dtype | contender | us | times ours | forward, us | backward, us | peak memory, MB "
        "| error of loss | error of gradient |",
        "| --- " * 11 + "|",
    ]
    for r in document["results"]:
        for name, found in r["contenders"].items():
            forward, backward = (found.get(f"{half}_microseconds") for half in ("forward", "backward"))
            cells = [
                f"`{r['loss']}`",
                shape(r),
                r["dtype"],
                name,
                microseconds(found),
                f"{found['over']:.2f}" if "over" in found else "",
                "" if forward is None else f"{forward:.0f}",
                "" if backward is None else f"{backward:.0f}",
                memory(found),
                error(found, "loss_error"),
                error(found),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def absent(document: dict) -> str:
    reasons = {
        f"- {name}, `{r['loss']}`: {reason}" for r in document["results"] for name, reason in r.get("absent", {}).items()
    }
    return "\n".join(["Not measured:", "", *sorted(reasons)]) if reasons else "Everything was measured."


def counted(document: dict) -> str:
    rows = ["| loss | shape | dtype | why | bytes | operations | batches |", "| --- " * 7 + "|"]
    for r in document["results"]:
        if "work" not in r:
            continue
        terms = (" + ".join(f"{n:.3g} {term}" for term, n in r["work"][kind].items()) for kind in ("bytes", "operations"))
        batches = f"{r['inputs']['batches']}{'' if r['inputs']['fill_cache'] else ', within the cache'}"
        rows.append(f"| `{r['loss']}` | {shape(r)} | {r['dtype']} | {r['reason']} | {' | '.join(terms)} | {batches} |")
    return "\n".join(rows)


def section(results: str, page: str) -> str:
    """What the page has between its marks, marks included. Both are paths from the root on."""
    text = summary(json.loads((ROOT / results).read_text()))
    return f"{MARK.format(results, page)}\n{text}\n<!-- end of speed -->"


def rewritten(text: str, results: str) -> str:
    """A page with its section of these results made anew."""
    return SECTION.sub(lambda mark: section(results, mark["page"]) if mark["results"] == results else mark[0], text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw roofline.png and scaling.png there")
    parser.add_argument("--page", type=Path, metavar="PAGE.md", help="rewrite its section of these results")
    options = parser.parse_args()
    document = json.loads(options.results.read_text())
    print(summary(document), details(document), sep="\n\n")
    if options.plots:
        from . import plots  # needs matplotlib

        options.plots.mkdir(parents=True, exist_ok=True)
        plots.roofline(document, options.plots / "roofline.png")
        if document["scaling"]:
            plots.scaling(document, options.plots / "scaling.png")
    if options.page:
        text, results = options.page.read_text(), options.results.resolve()
        name = results.relative_to(ROOT).as_posix() if results.is_relative_to(ROOT) else str(results)
        if name not in [mark["results"] for mark in SECTION.finditer(text)]:
            parser.error(f"{options.page} has no section of {name}: it would begin with {MARK.format(name, options.page)}")
        options.page.write_text(rewritten(text, name))


if __name__ == "__main__":
    main()
