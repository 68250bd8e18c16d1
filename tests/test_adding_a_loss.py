"""docs/adding_a_loss.md: its table names the files of decoupled_kl, and every loss has the rooms that it asks for."""

import functools
import inspect
import re
from pathlib import Path

import numerics_tables
import pytest
import torch
from test_nn import MODULES, key

import kdkernels as kd
from benchmarks import families
from kdkernels import __main__ as self_check

ROOT = Path(__file__).parents[1]
SOURCES = ("README.md", "docs", "csrc", "kdkernels", "tests", "benchmarks")
if not all((ROOT / name).exists() for name in SOURCES):
    pytest.skip("pages and sources are not beside the tests", allow_module_level=True)
PAGE = ROOT / "docs" / "adding_a_loss.md"
# Written by commands that the page names.
GENERATED = {
    "csrc/emulated/kernel_resources.json",
    "benchmarks/instruction_budget.json",
    "docs/numerics.md",
    "docs/benchmarks.md",
}
# Not measured: ranks and choices, outputs that are no loss, and a divergence of softened_kl under another name.
NOT_MEASURED = {"logit_rank", "similarity_rank", "select_trusted_rows", "pseudo_labels"}
NOT_MEASURED |= {"peer_attention", "mean_probabilities", "soft_cross_entropy"}


def named():
    """The files of the table."""
    table = PAGE.read_text().partition("## The files of")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([\w./-]+)` \|", table, re.MULTILINE)


def mentioning(word):
    """Text files of the sources that do, but for the page, this test, and what is generated."""
    found = set()
    for path in [each for name in SOURCES for each in [ROOT / name, *(ROOT / name).rglob("*")]]:
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh", ".py", ".md", ".json") or "/results/" in name:
            continue
        if path not in (PAGE, Path(__file__).resolve()) and name not in GENERATED and word in path.read_text().lower():
            found.add(name)
    return found


def test_the_table_names_the_files_of_the_example():
    files = named()
    assert len(files) == len(set(files))
    assert set(files) == mentioning("decoupled")


def test_generated_files_are_named():
    text = PAGE.read_text()
    assert all(f"`{name}`" in text for name in GENERATED)


def test_what_the_page_names_exists():
    text = PAGE.read_text().replace("STEM", "memory_bank")  # the example that it names
    paths = re.findall(r"`([\w.-]+/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    functions = re.findall(r"`(\w+)` \(`([\w./-]+)`\)", text)
    functions += re.findall(r"`([\w./-]+)` \| a case in `(\w+)` \|", text)
    assert len(functions) > 5
    for pair in functions:
        path, name = sorted(pair, key=lambda each: "/" not in each)
        assert name in (ROOT / path).read_text(), pair


@functools.cache
def calls_of_self_check():
    """The functions that `python -m kdkernels` calls."""
    called = set()

    def watched(name, function):
        def call(*arguments, **options):
            called.add(name)
            return function(*arguments, **options)

        call.__signature__ = inspect.signature(function)
        return call

    usual = {name: getattr(kd, name) for name in kd.functional.__all__}
    try:
        for name, function in usual.items():
            setattr(kd, name, watched(name, function))
        with kd.backend("reference"):
            generator = torch.Generator().manual_seed(0)
            student, teacher = (torch.randn(8, 100, generator=generator) for _ in range(2))
            self_check.losses(student, teacher, torch.arange(8))
    finally:
        for name, function in usual.items():
            setattr(kd, name, function)
    return called


def rooms():
    """Room -> the functions that have it."""
    functions = set(kd.functional.__all__)

    def names(of):
        return {name for name in functions if any(re.match(rf"{name}\b", each) for each in of)}

    pages = [page for page in (ROOT / "docs").glob("*.md") if page != PAGE and f"docs/{page.name}" not in GENERATED]
    text = "\n".join(page.read_text() for page in pages)

    def has_twin(name):
        twin = getattr(kd.reference, name, None)
        return twin is not None and inspect.signature(twin) == inspect.signature(getattr(kd, name))

    measured = [loss for family in families.FAMILIES for loss in families.losses(family)]
    bounded = [loss for losses, _ in numerics_tables.FAMILIES for loss in losses]
    return {
        "module in kdkernels/nn": {name for name in functions if key(name) in MODULES},
        "twin of the same signature in kdkernels/reference": set(filter(has_twin, functions)),
        "section in docs": {name for name in functions if re.search(rf"`{name}\b", text)},
        "row in README.md": {name for name in functions if f"`{name}`" in (ROOT / "README.md").read_text()},
        "benchmark in benchmarks": NOT_MEASURED | names(measured),
        "error bound in tests/numerics_*.py": NOT_MEASURED | names(bounded),
        "call in kdkernels/__main__.py": calls_of_self_check(),
    }


def missing():
    """What each loss lacks."""
    having = rooms()
    return {
        name: lacks
        for name in kd.functional.__all__
        if (lacks := [room for room, functions in having.items() if name not in functions])
    }


def test_every_loss_has_its_rooms():
    assert missing() == {}


def remove_module(patch):
    patch.delitem(MODULES, key("decoupled_kl"))


def remove_twin(patch):
    patch.delattr(kd.reference, "decoupled_kl")


def change_twin(patch):
    patch.setattr(kd.reference, "decoupled_kl", lambda student, teacher, target: None)


def remove_from_pages(patch):
    usual = Path.read_text
    patch.setattr(Path, "read_text", lambda path: usual(path).replace("`decoupled_kl", "`"))


def remove_benchmark(patch):
    patch.setattr(families, "FAMILIES", tuple(name for name in families.FAMILIES if name != "decoupled_kl"))


def remove_bound(patch):
    def without(losses):
        return {name: loss for name, loss in losses.items() if name != "decoupled_kl"}

    kept = [(without(losses), regimes) for losses, regimes in numerics_tables.FAMILIES]
    patch.setattr(numerics_tables, "FAMILIES", kept)


def remove_call(patch):
    calls_of_self_check.cache_clear()
    patch.setattr(self_check, "student_losses", lambda **given: {})


@pytest.mark.parametrize(
    "remove, room",
    [
        (remove_module, "module in kdkernels/nn"),
        (remove_twin, "twin of the same signature in kdkernels/reference"),
        (change_twin, "twin of the same signature in kdkernels/reference"),
        (remove_from_pages, "section in docs"),
        (remove_from_pages, "row in README.md"),
        (remove_benchmark, "benchmark in benchmarks"),
        (remove_bound, "error bound in tests/numerics_*.py"),
        (remove_call, "call in kdkernels/__main__.py"),
    ],
)
def test_a_missing_room_is_named(monkeypatch, remove, room):
    calls_of_self_check()  # with the twin
    remove(monkeypatch)
    found = missing()["decoupled_kl"]
    calls_of_self_check.cache_clear()
    assert room in found
