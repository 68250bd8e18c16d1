"""Tables and plots of the numbers that `python -m benchmarks --json` wrote.

    python -m benchmarks.report RESULTS.json... [--plots FOLDER] [--page PAGE.md]

Prints every table, and the targets beside what these runs have reached; `--plots` draws the roofline and the scaling of the
first; `--page` makes the sections of a page anew that name one of these results in their first mark.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from . import headline, tables, targets

ROOT = Path(__file__).parents[1]
MARK = "<!-- {}: python -m benchmarks.report {} --page {} -->"
SECTION = re.compile(
    MARK.format(r"(?P<kind>speed|targets|headline)", r"(?P<results>[^>]+)", r"(?P<page>\S+)") + r"\n.*?\n<!-- end of (?P=kind) -->",
    re.DOTALL,
)
KINDS: dict[str, Callable[[list[dict]], str]] = {
    "speed": lambda documents: "\n\n".join(map(tables.summary, documents)),
    "targets": targets.table,
    "headline": headline.table,
}


def section(kind: str, results: str, page: str) -> str:
    """What the page has between its marks, marks included. Results and page are paths from the root on."""
    documents = [json.loads((ROOT / path).read_text()) for path in results.split()]
    return f"{MARK.format(kind, results, page)}\n{KINDS[kind](documents)}\n<!-- end of {kind} -->"


def rewritten(text: str, results: set[str]) -> str:
    """A page with the sections of any of these results made anew."""

    def made(mark: re.Match) -> str:
        return mark[0] if results.isdisjoint(mark["results"].split()) else section(*mark.group("kind", "results", "page"))

    return SECTION.sub(made, text)


def from_root(path: Path) -> str:
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw roofline.png and scaling.png there")
    parser.add_argument("--page", type=Path, metavar="PAGE.md", help="make its sections of these results anew")
    options = parser.parse_args()
    documents = [json.loads(path.read_text()) for path in options.results]
    for document in documents:
        print(tables.summary(document), tables.details(document), sep="\n\n", end="\n\n")
    print(targets.table(documents))
    if options.plots:
        from . import plots  # needs matplotlib

        options.plots.mkdir(parents=True, exist_ok=True)
        plots.roofline(documents[0], options.plots / "roofline.png")
        if documents[0]["scaling"]:
            plots.scaling(documents[0], options.plots / "scaling.png")
    if options.page:
        text, names = options.page.read_text(), set(map(from_root, options.results))
        if names.isdisjoint(name for mark in SECTION.finditer(text) for name in mark["results"].split()):
            mark = MARK.format("speed", " ".join(sorted(names)), options.page)
            parser.error(f"{options.page} has no section of these results: it would begin with {mark}")
        options.page.write_text(rewritten(text, names))


if __name__ == "__main__":
    main()
