"""The budget of instructions: that callgrind's counts are read rightly, and what is refused. .ci/run counts for real."""

import json

import pytest

from benchmarks import host_problems, instructions

BUDGET = {"compiler": "g++ 1", "instructions": {"a": 1000, "b": 1000}}

PROFILE = """events: Ir
ob=/lib/libc.so.6
fl=???
fn=memcpy
0 7
ob=/here/_host.so
fn=kernel
0 100
12 20
cob=/lib/libc.so.6
cfn=memcpy
calls=3 0
0 21
0 3
ob=/lib/libc.so.6
fn=free
0 5
"""


def test_only_the_library_itself_is_counted(tmp_path):
    profile = tmp_path / "profile.2"
    profile.write_text(PROFILE)
    assert instructions.instructions_in("/here/_host.so", profile) == 123
    assert instructions.instructions_in("/elsewhere/_host.so", profile) == 0


@pytest.mark.parametrize(
    "counted, compiler, accepted",
    [
        ({"a": 1100, "b": 500}, "g++ 1", True),
        ({"a": 1101, "b": 500}, "g++ 1", False),
        ({"a": 1000, "c": 1}, "g++ 1", False),
        ({"a": 2000, "b": 2000}, "g++ 2", True),
    ],
)
def test_what_is_refused(counted, compiler, accepted, capsys):
    assert instructions.compare(BUDGET, compiler, counted) is accepted
    shown = capsys.readouterr().out
    assert ("nothing is refused" in shown) == (compiler != BUDGET["compiler"])
    assert ("over the budget" in shown) != accepted
    assert ("under the budget" in shown) == (counted.get("b") == 500)


@pytest.mark.parametrize("options, status", [([], 0), (["--strict"], 1)])
def test_what_cannot_be_counted_fails_where_it_has_to_be(options, status, monkeypatch, capsys):
    pytest.importorskip("kdkernels._host", reason="the host library is not built")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["instructions", *options])
    with pytest.raises(SystemExit) as ended:
        instructions.main()
    assert int(ended.value.code) == status and "no valgrind" in capsys.readouterr().out


def test_every_problem_is_solved_and_has_a_budget():
    host = pytest.importorskip("kdkernels._host", reason="the host library is not built")
    problems = host_problems.problems(host)
    assert list(problems) == list(json.loads(instructions.BUDGET.read_text())["instructions"])
    for solve in problems.values():
        solve()
