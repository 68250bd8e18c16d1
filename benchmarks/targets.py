"""What is to be reached, and what runs have reached of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .problem import Shape
from .tables import figure, legend, markdown, shape

Found = tuple[float, float | None]  # a figure and its spread, where that is known


class Measure(NamedTuple):
    text: str  # of a bound
    form: str  # of a figure
    of: Callable[[dict], Found]  # of a result; KeyError where that was not measured
    at_least: bool = True  # the bound is the least, else the most


def over(name: str, ours: str = "kdkernels") -> Callable[[dict], Found]:
    """How many times longer than ours a contender takes."""

    def found(result: dict) -> Found:
        contender = result["contenders"][name]
        return contender["over"] / result["contenders"][ours]["over"], contender.get("over_spread")

    return found


def times(name: str, ours: str = "kdkernels") -> Callable[[dict], Found]:
    """How many times longer than a floor ours takes."""

    def found(result: dict) -> Found:
        value, spread = over(name, ours)(result)
        return 1 / value, spread

    return found


def percent_of(floor: str) -> Callable[[dict], Found]:
    def found(result: dict) -> Found:
        return 100 * result["share_of_floor"][floor], result["contenders"][floor].get("over_spread")

    return found


def over_fastest_package(result: dict) -> Found:
    if not result["packages"]:
        raise KeyError("packages")
    return min((over(name)(result) for name in result["packages"]), key=lambda found: found[0])


EAGER = Measure("at least {:g}x over eager", "{:.2f}x", over("eager"))
COMPILE = Measure("at least {:g}x over torch.compile", "{:.2f}x", over("compile"))
PACKAGE = Measure("at least {:g}x over the fastest package", "{:.2f}x", over_fastest_package)
FLOAT32 = Measure("no slower than float32", "{:.2f}x", over("kdkernels, float32"))
COPY = Measure("at most {:g}x a copy", "{:.2f}x", times("copy"), at_least=False)
FRESH = Measure("at most {:g}x a copy into fresh memory", "{:.2f}x", times("copy, fresh"), at_least=False)
OF_COPY = Measure("at least {:g} % of copy speed", "{:.0f} %", percent_of("copy"))
OF_MATRIX = Measure("at least {:g} % of the matrix rate", "{:.0f} %", percent_of("product"))
KERNELS = Measure("at most {:g} kernels", "{:.0f}", lambda r: (r["kernels"], None), at_least=False)
LAUNCHES = Measure(
    "at most {:g}x launches alone", "{:.2f}x", times("launches, graph", "kdkernels, graph"), at_least=False
)


class Target(NamedTuple):
    losses: tuple[str, ...]
    shape: Shape
    measure: Measure
    bound: float
    why: str = ""  # it is missed, where it is
    dtype: str = ""  # any, unless named


KL, KD = "softened_kl", "kd_loss"
DYNAMIC = ("dynamic_temperature_kl, flsw, ps", "dynamic_temperature_kl, cwsm")
CALL = "PyTorch's own overhead, see the overhead of one call"
ARITHMETIC = "two exponentials per class"
CONVERSION = "the rows come from a cache: bfloat16 saves no time there, and conversion costs some"
CPU = (
    Target((KL, KD), (64, 100), EAGER, 3, CALL),
    Target((KL, KD), (64, 100), COMPILE, 3, CALL),
    Target((KL, KD), (64, 100), FLOAT32, 1, CONVERSION),
    Target((KL, KD), (256, 1000), EAGER, 6, CALL),
    Target((KL, KD), (256, 1000), COMPILE, 2.5),
    Target((KL, KD), (256, 1000), FLOAT32, 1, CONVERSION),
    Target((KL, KD), (1024, 1000), EAGER, 10, ARITHMETIC),
    Target((KL, KD), (1024, 1000), COMPILE, 3, ARITHMETIC),
    Target((KL, KD), (1024, 1000), FLOAT32, 1, CONVERSION),
    Target((KL,), (1024, 1000), COPY, 2.5, ARITHMETIC, "float32"),
    Target((KL,), (1024, 1000), FRESH, 2.5, ARITHMETIC, "float32"),
    Target((KL, KD), (512, 32000), EAGER, 10, ARITHMETIC),
    Target((KL, KD), (512, 32000), COMPILE, 2.5, ARITHMETIC),
    Target((KL, KD), (512, 32000), FLOAT32, 1, CONVERSION),
    Target((KL,), (512, 32000), COPY, 1.6, "page faults; without them, " + ARITHMETIC, "float32"),
    Target((KL,), (512, 32000), FRESH, 1.6, ARITHMETIC, "float32"),
    Target(("softened_kl, standardize",), (1024, 1000), EAGER, 8),
    Target(("virtual_teacher_loss", "cwtm_loss"), (128, 100), EAGER, 3, CALL),
    Target(("virtual_teacher_loss", "cwtm_loss"), (1024, 1000), EAGER, 8, "the eager form is short: a softmax and a cross entropy"),
    Target(DYNAMIC, (128, 100), EAGER, 4, CALL),
    Target(DYNAMIC, (1024, 1000), EAGER, 8, "the temperatures need a pass of their own"),
    *(Target(("similarity_kl", "info_nce"), shape, EAGER, 2) for shape in ((192, 64, 128), (4096, 4096, 128))),
    Target(("memory_bank_nce",), (64, 16384, 128, 50_000), EAGER, 4),
    Target(("okddip_loss",), (128, 3, 100, 8), EAGER, 6, CALL),
    Target(("okddip_loss",), (64, 3, 1000, 64), EAGER, 8),
)
CUDA = (
    *(Target((KL, KD), shape, KERNELS, 3) for shape in ((128, 100), (1024, 100))),
    *(Target((KL, KD), shape, LAUNCHES, 1.3) for shape in ((128, 100), (1024, 100))),
    Target((KL, KD), (16384, 1000), OF_COPY, 75),
    Target((KL, KD), (4096, 21841), OF_COPY, 85, dtype="float32"),
    *(Target((KL, KD), (8192, classes), OF_COPY, 85, dtype="bfloat16") for classes in (32000, 128256)),
    *(Target((KL,), (8192, classes), PACKAGE, 4, dtype="bfloat16") for classes in (32000, 128256)),
    Target(("info_nce",), (65536, 65536, 512), OF_MATRIX, 45, dtype="bfloat16"),
    Target(("okddip_loss",), (256, 8, 1000, 64), EAGER, 5, dtype="bfloat16"),
    Target(("okddip_loss",), (256, 8, 32768, 64), OF_COPY, 80, dtype="bfloat16"),
)
TARGETS = {"cpu": CPU, "cuda": CUDA}


def table(documents: list[dict]) -> str:
    """One for CPUs and one for GPUs, where there are such runs."""
    kinds = dict.fromkeys(map(kind_of, documents))
    return legend("\n\n".join(table_of(kind, [d for d in documents if kind_of(d) == kind]) for kind in kinds))


def table_of(kind: str, documents: list[dict]) -> str:
    """A row for each target that was measured, a column for each dtype of each run; what is missed stands in bold."""
    columns = [(document, dtype) for document in documents for dtype in document["rates"]]
    rows = [row_of(target, loss, columns) for target in TARGETS[kind] for loss in target.losses]
    rows = [row for row in rows if row]
    if not rows:
        return "No target is at these shapes."
    names = ("loss", "shape", "target", *(heading(*column) for column in columns), "why it is missed")
    text = markdown(zip(names, zip(*rows)))
    cells = [cell for row in rows for cell in row[3:-1] if cell]
    reached = sum(not cell.startswith("**") for cell in cells)
    return f"{text}\n\nReached: {reached} of {len(cells)}; those in bold are missed."


def heading(document: dict, dtype: str) -> str:
    facts = document["machine"]
    where = facts["device"] if kind_of(document) == "cuda" else f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    return f"{where}, {dtype}{', memory kept' if facts.get('memory_kept') else ''}"


def kind_of(document: dict) -> str:
    return document["machine"].get("kind", "cpu")


def row_of(target: Target, loss: str, columns: list[tuple[dict, str]]) -> tuple[str, ...] | None:
    found = [result_of(target, loss, *column) for column in columns]
    cells = [cell(target, result) for result in found]
    if not any(cells):
        return None
    why = target.why if any(text.startswith("**") for text in cells) else ""
    return f"`{loss}`", shape(next(filter(None, found))), target.measure.text.format(target.bound), *cells, why


def result_of(target: Target, loss: str, document: dict, dtype: str) -> dict | None:
    for result in document["results"] if target.dtype in ("", dtype) else ():
        if (result["loss"], tuple(result["shape"]), result["dtype"]) == (loss, target.shape, dtype):
            return result
    return None


def cell(target: Target, result: dict | None) -> str:
    measure = target.measure
    try:
        value, spread = measure.of(result or {})
    except KeyError:
        return ""
    text = figure(measure.form.format(value), spread)
    return text if (value >= target.bound if measure.at_least else value <= target.bound) else f"**{text}**"
