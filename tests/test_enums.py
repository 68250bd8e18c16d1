"""The integers of kdkernels/_names.py are the enums and limits of the C++ headers."""

import re
from pathlib import Path

import pytest

from kdkernels import _names
from kdkernels._checks import peer_ensemble, rows

CSRC = Path(__file__).resolve().parents[1] / "csrc"


def enum(header, name):
    found = re.search(rf"enum class {name} : int \{{([^}}]*)\}}", (CSRC / header).read_text())
    return {each.strip(): code for code, each in enumerate(found.group(1).split(","))}


def constant(header, name):
    found = re.search(rf"constexpr int64_t {name} = ([^;]*);", (CSRC / header).read_text())
    return eval(found.group(1).replace("int64_t", "int"))


SOURCES_OF_ONE_OP = dict.fromkeys(set(enum("row_loss.h", "TargetSource")) - set(_names.TEACHER_KINDS))
# Where Python's name is not C++'s; None: Python has no name for it, or another integer serves it.
TABLES = {
    "TEACHER_KINDS": ("row_loss.h", "TargetSource", SOURCES_OF_ONE_OP),
    "DIVERGENCES": ("row_loss.h", "Divergence", {}),
    "REDUCTIONS": ("types.h", "Reduction", {}),
    "STATISTICS": ("row_loss.h", "RowStatistic", {"none": None, "cosine": "flsw", "doubt": "cwsm", "pseudo_label": None}),
    "TEMPERATURE_MODES": (
        "row_loss.h",
        "RowStatistic",
        {"none": "const", "cosine": "flsw", "doubt": "cwsm", "confidence": None, "rank": None, "pseudo_label": None},
    ),
    "ADJUSTMENTS": ("row_loss.h", "Adjustment", {"exchange": "ps", "label": "lsr"}),
    "KEY_TARGETS": ("similarity.h", "KeyTarget", {}),
    "PEER_MIXES": ("peer_ensemble.h", "PeerMix", {"divergences": None}),
}


@pytest.mark.parametrize("table", TABLES)
def test_names_are_the_enums(table):
    header, name, names = TABLES[table]
    expected = {names.get(each, each): code for each, code in enum(header, name).items() if names.get(each, each)}
    ours = dict(getattr(_names, table))
    assert ours.pop("mean", expected.get("batchmean")) == expected.get("batchmean")  # an alias
    assert ours == expected


def test_every_table_of_an_op_is_compared():
    assert {id(table) for table in _names.OPTIONS.values()} <= {id(getattr(_names, table)) for table in TABLES}


def test_limits():
    assert constant("row_loss.h", "most_classes") == rows.MOST_CLASSES
    assert constant("peer_ensemble.h", "most_peers") == peer_ensemble._MOST_PEERS
