"""A run killed in the middle of an epoch continues with the same command and ends as it would have, bit for bit: once for
each kind of thing that a run remembers beside network, optimizer and batches."""

import importlib

import pytest
import torch
from trainer_process import interrupt
from trainer_runs import SMALL, assert_same_run, epochs_written, torch_settings  # noqa: F401

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint

pytestmark = pytest.mark.trainers
COMMON = [*SMALL, "--epochs", "3", "--batch-size", "100"]
# A single student: test_trainer_kd.py. Stage 1 of sskd: test_trainer_sskd.py. A comparison: test_trainer_compare.py.
TRAINERS = {
    "born_again": ["--generations", "1", "--loss", "dkpp"],  # a generator: of permutations
    "sskd": ["--teacher-epochs", "1", "--head-epochs", "1"],  # a head beside the student
    "crd": ["--teacher-epochs", "1", "--negatives", "20"],  # memory: banks, normalisers; contrasts drawn
    "okddip": ["--rampup-epochs", "3"],  # peers, attention, the ramp in the middle
}


def options_of(trainer):
    without_teacher = [option for option in COMMON if option not in ("--teacher-model", "small_mlp")]
    return (without_teacher if trainer in ("born_again", "okddip") else COMMON) + TRAINERS[trainer]


def assert_same_beside(run, other):
    """What learned beside the network, bit for bit."""
    ours, theirs = (
        load_checkpoint(checkpoint_path(folder))["tracked"].get("beside", {}) for folder in (run, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_killed_run_continues_exactly(trainer, tmp_path, capsys):
    options, main = options_of(trainer), importlib.import_module(f"python_trainers.{trainer}").main
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert main([*options, "--out", str(uninterrupted)]) == 0
    _, stderr = interrupt(trainer, [*options, "--out", str(killed)], killed, tmp_path / "log")
    assert epochs_written(killed) == 1, stderr

    torch.manual_seed(5)  # what was drawn before does not matter
    assert main([*options, "--out", str(killed)]) == 0
    assert f"{killed} continues after epoch 1 of 3" in capsys.readouterr().out
    assert_same_run(killed, uninterrupted)
    assert_same_beside(killed, uninterrupted)
    assert (killed / "summary.json").read_bytes() == (uninterrupted / "summary.json").read_bytes()


def test_generation_killed_before_the_last_continues_exactly(tmp_path, capsys):
    main = importlib.import_module("python_trainers.born_again").main
    options = ["--train-images", "50", "--epochs", "2", "--generations", "2"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert main([*options, "--out", str(uninterrupted)]) == 0
    interrupt("born_again", [*options, "--out", str(killed)], killed / "generation-1", tmp_path / "log")
    assert epochs_written(killed / "generation-1") == 1 and not (killed / "metrics.jsonl").exists()

    assert main([*options, "--out", str(killed)]) == 0
    assert f"{killed / 'generation-1'} continues after epoch 1 of 2" in capsys.readouterr().out
    for run in ("generation-1", "."):
        assert_same_run(killed / run, uninterrupted / run)
