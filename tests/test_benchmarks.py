"""What the benchmarks measure with, and the one figure that is no time: memory beyond the inputs."""

import pytest
import torch

from benchmarks import bench_softened_kl
from benchmarks.timing import alternate, peak_bytes, ratio, spread


def test_ratio_is_taken_round_by_round():
    times = {"ours": [1.0, 2.0, 4.0], "other": [3.0, 6.0, 12.0]}  # the machine slows down
    assert ratio(times, "other", "ours") == 3.0
    assert spread([1.0, 1.0, 1.0]) == 0.0


def test_contenders_take_turns():
    turns = []
    times = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, "cpu", seconds=0.01, turn=1e-6)
    assert len(times["a"]) == len(times["b"]) >= 5
    assert turns[-1] == "b" and "a" in turns[turns.index("b") :]


@pytest.mark.parametrize("loss", bench_softened_kl.LOSSES)
def test_one_gradient_is_all_the_memory(loss):
    rows, classes = 256, 1000
    calls = bench_softened_kl.contenders(loss, rows, classes, torch.float32, "cpu")
    gradient = rows * classes * 4
    assert gradient <= peak_bytes(calls["kdkernels"], "cpu") < 1.1 * gradient
    assert peak_bytes(calls["eager"], "cpu") > 4 * gradient
