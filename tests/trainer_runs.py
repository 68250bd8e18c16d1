"""What the tests of the trainers share: packages, process-wide settings, looking at runs."""

from pathlib import Path

import pytest
import torch

for package in ("accelerate", "matplotlib", "sklearn", "tqdm", "tyro"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint

ROOT = Path(__file__).parents[1]
# A teacher without convolutions, whose three epochs take a tenth of a second, and a student's few images.
SMALL = ["--train-images", "50", "--teacher-model", "small_mlp"]


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
