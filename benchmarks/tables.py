"""Tables of the numbers of a run: a summary for pages, and everything that was measured, counted or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

NOISY = 0.25  # a spread beyond it is marked
FLOORS = {"copy": "a copy", "product": "torch.mm"}


def summary(document: dict) -> str:
    """The machine, and a table for each kind of shape: what pages show."""
    results = document["results"]
    tables = [table([r for r in results if r["axes"] == axes]) for axes in dict.fromkeys(r["axes"] for r in results)]
    return legend("\n\n".join([machine(document), *tables]))


def machine(document: dict) -> str:
    facts = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = "; ".join(
        f"{dtype}: copies {r['bytes_per_second'] / 1e9:.1f} GB/s, multiplies {r['operations_per_second'] / 1e12:.3g} TFLOP/s"
        for dtype, r in document["rates"].items()
    )
    kept = ", memory of gradients kept" if facts.get("memory_kept") else ""
    return f"{facts['device']}, CPU threads: {facts['threads']}, {facts['instruction_set']}{kept}; {versions}.\n{rates}."


def legend(text: str) -> str:
    """With a word on the marks in it."""
    return f"{text}\n\n`?`: a spread above {100 * NOISY:.0f} %." if " ?" in text else text


def table(results: list[dict]) -> str:
    """Of results of one kind of shape."""

    def of(name: str, cell: Callable[[dict], str]) -> list[str]:
        return [cell(r["contenders"].get(name, {})) for r in results]

    return markdown(
        {
            "loss": [f"`{r['loss']}`" for r in results],
            results[0]["axes"]: [shape(r) for r in results],
            "dtype": [r["dtype"] for r in results],
            "kdkernels, us": of("kdkernels", microseconds),
            "under torch.compile, us": of("kdkernels, compile", microseconds),
            "over eager": of("eager", times),
            "over torch.compile": of("compile", times),
            "over the fastest package": [fastest_package(r) for r in results],
            "share of the floor": [share(r) for r in results],
            "of a copy into fresh memory": [fresh_share(r) for r in results],
            "peak memory, MB (eager)": list(map(beside, of("kdkernels", memory), of("eager", memory))),
            "error of gradient (eager)": list(map(beside, of("kdkernels", error), of("eager", error))),
        }.items()
    )


def markdown(columns: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Those columns that are not empty."""
    names, cells = zip(*((name, cells) for name, cells in columns if any(cells)))
    rows = [names, ("---",) * len(names), *zip(*cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shape(result: dict) -> str:
    """As the axes are written: by `x`, and what does not belong to the batch after a comma."""
    sizes = iter(result["shape"])
    return ", ".join(" x ".join(str(next(sizes)) for _ in part.split(" x ")) for part in result["axes"].split(", "))


def figure(value: str, spread: float | None) -> str:
    """With its spread, where that is known."""
    return value if spread is None else noisy(f"{value} ± {100 * spread:.0f} %", spread)


def noisy(value: str, spread: float | None) -> str:
    return f"{value} ?" if spread is not None and spread > NOISY else value


def microseconds(contender: dict) -> str:
    return figure(f"{contender['microseconds']:.0f}", contender["spread"]) if "microseconds" in contender else ""


def times(contender: dict) -> str:
    """How many times longer than ours."""
    return figure(f"{contender['over']:.1f}x", contender.get("over_spread")) if "over" in contender else ""


def fastest_package(result: dict) -> str:
    """How many times longer than ours it takes, who it is, and how wrong."""
    if not (names := result.get("packages")):
        return ""
    name = min(names, key=lambda name: result["contenders"][name]["over"])
    found = result["contenders"][name]
    return f"{times(found)} ({name}, error {error(found)})"


def share(result: dict) -> str:
    if "floor" not in result:
        return ""
    floor = result["floor"]
    text = f"{100 * result['share_of_floor'][floor]:.0f} % of {FLOORS[floor]}"
    return noisy(text, result["contenders"].get(floor, {}).get("over_spread"))


def fresh_share(result: dict) -> str:
    """Where the floor is a copy: of one that has its pages faulted in, as a new gradient has."""
    found = result["contenders"].get("copy, fresh", {})
    if result.get("floor") != "copy" or not found:
        return ""
    return noisy(f"{100 * found['over']:.0f} %", found.get("over_spread"))


def memory_bytes(contender: dict) -> float | None:
    """The larger of what torch allocates, which sees no library's buffers, and of what the system counts, which sees no
    growth within pages that the process already has."""
    found = [contender[count] for count in ("peak_bytes", "resident_bytes") if count in contender]
    return max(found, default=None)


def memory(contender: dict) -> str:
    found = memory_bytes(contender)
    return "" if found is None else f"{found / 1e6:.3g}"


def error(contender: dict, of: str = "gradient_error") -> str:
    return f"{contender[of]:.1e}" if of in contender else ""


def beside(ours: str, eager: str) -> str:
    return f"{ours} ({eager})" if eager else ours


def details(document: dict) -> str:
    """Every contender of every result, what is absent, and what was counted."""
    return "\n\n".join([contenders(document), absent(document), counted(document)])


def contenders(document: dict) -> str:
    found = [(r, name, of) for r in document["results"] for name, of in r["contenders"].items()]

    def rounded(key: str, form: str) -> list[str]:
        return [format(of[key], form) if key in of else "" for _, _, of in found]

    return markdown(
        {
            "loss": [f"`{r['loss']}`" for r, _, _ in found],
            "shape": [shape(r) for r, _, _ in found],
            "dtype": [r["dtype"] for r, _, _ in found],
            "contender": [name for _, name, _ in found],
            "us": [microseconds(of) for _, _, of in found],
            "times ours": rounded("over", ".2f"),
            "forward, us": rounded("forward_microseconds", ".0f"),
            "backward, us": rounded("backward_microseconds", ".0f"),
            "peak memory, MB": [memory(of) for _, _, of in found],
            "error of loss": rounded("loss_error", ".1e"),
            "error of gradient": rounded("gradient_error", ".1e"),
        }.items()
    )


def absent(document: dict) -> str:
    reasons = {
        f"- {name}, `{r['loss']}`: {reason}" for r in document["results"] for name, reason in r.get("absent", {}).items()
    }
    return "\n".join(["Not measured:", "", *sorted(reasons)]) if reasons else "Everything was measured."


def counted(document: dict) -> str:
    results = [r for r in document["results"] if "work" in r]

    def terms(kind: str) -> list[str]:
        return [" + ".join(f"{n:.3g} {term}" for term, n in r["work"][kind].items()) for r in results]

    return markdown(
        {
            "loss": [f"`{r['loss']}`" for r in results],
            "shape": [shape(r) for r in results],
            "dtype": [r["dtype"] for r in results],
            "why": [r["reason"] for r in results],
            "bytes": terms("bytes"),
            "operations": terms("operations"),
            "batches": [batches(r["inputs"]) for r in results],
        }.items()
    )


def batches(inputs: dict) -> str:
    return f"{inputs['batches']}{'' if inputs['fill_cache'] else ', within the cache'}"
