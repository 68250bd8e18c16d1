"""A run killed in the middle continues with the same command and ends as it would have, bit for bit."""

import importlib

import pytest
import torch
from trainer_runs import assert_same_run, epochs_written, interrupt, torch_settings  # noqa: F401

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint

pytestmark = pytest.mark.trainers
EPOCHS = 25  # long enough to be stopped in the middle
COMMON = ["--train-images", "50", "--epochs", str(EPOCHS)]
# tests/test_trainer_kd.py has the same for kd, tests/test_trainer_compare.py for compare.
TRAINERS = {
    "born_again": ["--generations", "1", "--loss", "dkpp"],  # draws permutations
    "tf_kd": ["--mode", "self"],
    "ka_dtd": ["--teacher-model", "small_mlp", "--teacher-epochs", "2", "--teacher-errors", "0.2"],
    # Heads and banks beside the student, contrasts drawn.
    "sskd": ["--teacher-model", "small_mlp", "--teacher-epochs", "2", "--head-epochs", "2"],
    "crd": ["--teacher-model", "small_mlp", "--teacher-epochs", "2", "--negatives", "20"],
    "okddip": ["--rampup-epochs", "20"],  # peers, attention, the ramp in the middle
}


def assert_same_beside(run, other):
    """What learned beside the network, bit for bit."""
    ours, theirs = (
        load_checkpoint(checkpoint_path(folder))["tracked"].get("beside", {}) for folder in (run, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_killed_run_continues_exactly(trainer, tmp_path, capsys):
    options, main = COMMON + TRAINERS[trainer], importlib.import_module(f"python_trainers.{trainer}").main
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert main([*options, "--out", str(uninterrupted)]) == 0
    _, stderr = interrupt(trainer, [*options, "--out", str(killed)], killed, after=3)
    assert 3 <= epochs_written(killed) < EPOCHS, stderr

    assert main([*options, "--out", str(killed)]) == 0
    assert f"{killed} continues after epoch" in capsys.readouterr().out
    assert_same_run(killed, uninterrupted)
    assert_same_beside(killed, uninterrupted)
    assert (killed / "summary.json").read_bytes() == (uninterrupted / "summary.json").read_bytes()


def test_generation_killed_before_the_last_continues_exactly(tmp_path, capsys):
    main = importlib.import_module("python_trainers.born_again").main
    options = [*COMMON, "--generations", "2"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert main([*options, "--out", str(uninterrupted)]) == 0
    interrupt("born_again", [*options, "--out", str(killed)], killed / "generation-1", after=2)
    assert not (killed / "metrics.jsonl").exists()

    torch.manual_seed(5)  # what was drawn before does not matter
    assert main([*options, "--out", str(killed)]) == 0
    assert f"{killed / 'generation-1'} continues after epoch" in capsys.readouterr().out
    for run in ("generation-1", "."):
        assert_same_run(killed / run, uninterrupted / run)
