"""Two processes on half of each batch come to the result of one, but for rounding."""

import json
import os
import subprocess
import sys

import pytest
from accelerate import Accelerator
from trainer_runs import ROOT, torch_settings  # noqa: F401

from python_trainers import born_again, crd, ka_dtd, kd, okddip, sskd
from python_trainers.common.data import load_dataset
from python_trainers.common.metrics import accuracy
from python_trainers.common.run import load_trained

pytestmark = pytest.mark.trainers
# Networks without batch normalisation: on CPUs its statistics are each process's own.
COMMON = ["--train-images", "50", "--epochs", "3", "--learning-rate", "0.05"]
TAUGHT = ["--teacher-model", "small_mlp", "--teacher-epochs", "2"]
TRAINERS = {
    "kd": (kd, TAUGHT),
    # Statistics of the whole batch, clamping at work: halves of a batch would have others.
    "ka_dtd": (ka_dtd, [*TAUGHT, "--beta", "200", "--normalize", "l1", "--teacher-errors", "0.2"]),
    "born_again": (born_again, ["--loss", "cwtm", "--generations", "1"]),
    # Negatives, and which rows are trusted, from the whole batch.
    "sskd": (sskd, [*TAUGHT, "--head-epochs", "2", "--rotated-ratio", "0.5"]),
    # A batch is all 50 images: of one that comes twice, which row enters the bank last depends on the processes.
    "crd": (crd, [*TAUGHT, "--negatives", "20", "--batch-size", "50", "--learning-rate", "0.01"]),
    "okddip": (okddip, ["--rampup-epochs", "2", "--learning-rate", "0.01"]),
}


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def launch(trainer, options, out):
    """Two processes on the CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", f"python_trainers.{trainer}", *options, "--out", str(out)]
    subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_equal_one(trainer, tmp_path):
    module, options = TRAINERS[trainer]
    assert module.main([*COMMON, *options, "--out", str(tmp_path / "one")]) == 0
    launch(trainer, [*COMMON, *options], tmp_path / "two")
    for one, two in zip(entries(tmp_path / "one"), entries(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=2e-5, abs=2e-6)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["versions"]["processes"] == 2


def test_figures_are_those_of_the_network_that_is_kept(tmp_path):
    """With batch normalisation, whose statistics are each process's own until they are tested and saved."""
    options = ["--student-model", "small_resnet", "--students", "2", "--method", "one"]
    launch("okddip", [*options, "--epochs", "1", "--batch-size", "250"], tmp_path)
    dataset = load_dataset("digits", data_root=None)
    network, logged = load_trained(tmp_path, "small_resnet", dataset)
    assert accuracy(network, dataset.test, Accelerator()) == logged
