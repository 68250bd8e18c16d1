"""What the benchmarks measure with, and the one figure that is no time: memory beyond the inputs."""

import pytest
import torch

from benchmarks import bench_dkpp_loss, bench_dynamic_temperature_kl, bench_label_loss, bench_softened_kl
from benchmarks.row_losses import contenders
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


FAMILIES = (bench_softened_kl, bench_label_loss, bench_dkpp_loss, bench_dynamic_temperature_kl)
LOSSES = {name: loss for family in FAMILIES for name, loss in family.LOSSES.items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_one_gradient_is_all_the_memory(loss):
    rows, classes = 256, 1000
    calls = contenders(*LOSSES[loss], rows, classes, torch.float32, "cpu")
    gradient = rows * classes * 4
    assert gradient <= peak_bytes(calls["kdkernels"], "cpu") < 1.1 * gradient
    assert peak_bytes(calls["eager"], "cpu") > 1.9 * gradient


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"dkpp_loss"}))  # whose two sides draw other permutations
def test_both_sides_of_a_benchmark_are_the_same_loss(loss):
    ours, eager, _ = LOSSES[loss]
    student, teacher = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(0)) * 3
    target = torch.arange(16) % 10
    torch.testing.assert_close(ours(student, teacher, target), eager(student, teacher, target), rtol=1e-4, atol=1e-5)
