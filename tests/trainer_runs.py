"""What the tests of the trainers share: packages, process-wide settings, looking at runs and killing them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

for package in ("accelerate", "matplotlib", "sklearn", "tqdm", "tyro"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def torch_settings():
    """Trainers fix process-wide settings; put them back for the tests of other files."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint_path(run))["tracked"]["model"]


def assert_same_run(run: Path, other: Path) -> None:
    """Bit for bit."""
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name, weight in weights(run).items():
        assert torch.equal(weight, weights(other)[name]), name


def epochs_written(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def interrupt(
    trainer: str, options: list[str], run: Path, *, after: int, kill: signal.Signals = signal.SIGKILL
) -> tuple[int, str]:
    """Start a trainer as a process, stop it once ``run`` has ``after`` epochs; gives exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"python_trainers.{trainer}", *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a test suite started in the background inherits an ignored SIGINT, which python would keep
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while epochs_written(run) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(kill)
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr
