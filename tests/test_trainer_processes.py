"""Two processes on half of each batch come to the result of one, but for rounding."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from trainer_runs import ROOT, torch_settings  # noqa: F401

from python_trainers import born_again, crd, ka_dtd, kd, okddip, sskd
from python_trainers.common.data import load_dataset
from python_trainers.common.metrics import accuracy
from python_trainers.common.resolve import load_trained, resolve_network

pytestmark = pytest.mark.trainers
# Networks without batch normalisation: on CPUs its statistics are each process's own.
COMMON = ["--train-images", "50", "--epochs", "2", "--learning-rate", "0.05"]
TAUGHT = ["--teacher-model", "small_mlp", "--teacher-epochs", "1"]
TRAINERS = {
    # Gradients summed over processes and parts of a batch, then clipped; a moving average.
    "kd": (kd, [*TAUGHT, "--grad-accum-steps", "2", "--clip-grad", "0.5", "--model-ema-decay", "0.9"]),
    # Statistics of the whole batch, clamping at work: halves of a batch would have others.
    "ka_dtd": (ka_dtd, [*TAUGHT, "--beta", "200", "--normalize", "l1", "--teacher-errors", "0.2"]),
    "born_again": (born_again, ["--loss", "cwtm", "--generations", "1"]),
    # Negatives, and which rows are trusted, from the whole batch.
    "sskd": (sskd, [*TAUGHT, "--head-epochs", "1", "--rotated-ratio", "0.5"]),
    # A batch is all 50 images: of one that comes twice, which row enters the bank last depends on the processes.
    "crd": (crd, [*TAUGHT, "--negatives", "20", "--batch-size", "50", "--learning-rate", "0.01"]),
    "okddip": (okddip, ["--rampup-epochs", "2", "--learning-rate", "0.01"]),
}
NORMALISED = ["--student-model", "small_resnet", "--students", "2", "--method", "one"]
SCRIPT = """
import json, runpy, sys
for trainer, options in json.loads(sys.argv[1]):
    sys.argv = [trainer, *options]
    try:
        runpy.run_module(f"python_trainers.{trainer}", run_name="__main__")
    except SystemExit as end:
        assert not end.code, trainer
"""


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of the runs of two processes on the CPU: each of TRAINERS, and okddip with batch normalisation. The same two
    do all of them, one after another, since they take longer to start than to train."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    runs = [(name, [*COMMON, *options, "--out", str(folder / name)]) for name, (_, options) in TRAINERS.items()]
    runs.append(("okddip", [*NORMALISED, "--epochs", "1", "--batch-size", "250", "--out", str(folder / "normalised")]))
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if torch.cuda.is_available() else {}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launcher, str(folder / "script.py"), json.dumps(runs)],
        env={**os.environ, **on_cpu, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=300,
    )
    return folder


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_equal_one(trainer, two, tmp_path):
    module, options = TRAINERS[trainer]
    assert module.main([*COMMON, *options, "--out", str(tmp_path)]) == 0
    for ours, theirs in zip(entries(tmp_path), entries(two / trainer), strict=True):
        assert theirs == pytest.approx(ours, rel=2e-5, abs=2e-6)
    assert json.loads((two / trainer / "summary.json").read_text())["versions"]["processes"] == 2


def test_figures_are_those_of_the_network_that_is_kept(two):
    """With batch normalisation, whose statistics are each process's own until they are tested and saved."""
    dataset = load_dataset("digits", data_root=None)
    network, logged = load_trained(two / "normalised", resolve_network("small_resnet", None, dataset), dataset)
    assert accuracy(network, dataset.test, Accelerator()) == logged
