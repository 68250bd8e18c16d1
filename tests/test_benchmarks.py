"""What the benchmarks measure with, and the one figure that is no time: memory beyond the inputs."""

import pytest
import torch

from benchmarks import (
    bench_dkpp_loss,
    bench_dynamic_temperature_kl,
    bench_label_loss,
    bench_similarity,
    bench_softened_kl,
    similarities,
)
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


@pytest.mark.parametrize("loss", bench_similarity.LOSSES)
def test_both_sides_of_a_similarity_benchmark_are_the_same_loss(loss):
    ours, eager, _ = bench_similarity.LOSSES[loss]
    features = torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(0))
    positive = torch.arange(12)
    torch.testing.assert_close(ours(*features, positive), eager(*features, positive), rtol=1e-4, atol=1e-5)
    for shapes in (bench_similarity.CPU_SHAPES, bench_similarity.CUDA_SHAPES, bench_similarity.QUICK_SHAPES):
        assert shapes.keys() == bench_similarity.LOSSES.keys()


def test_a_table_of_similarities_has_rows_that_were_timed_and_rows_that_were_weighed():
    weighed = {"loss": "a", "shape": (2, 3, 4), "dtype": "float32", "peak_bytes": {"kdkernels": 1e6, "eager": 3e6}}
    timed = {
        "microseconds": {"kdkernels": 5.0},
        "spread": {"kdkernels": 0.1},
        "over_eager": 2.0,
        "over_compile": 1.5,
        "of_matrix_rate": 0.5,
    }
    _, _, *rows = similarities.table([weighed | timed, weighed]).splitlines()
    assert rows[0] == "| `a` | 2 x 3 x 4 | float32 | 5 ± 10 % | 2.0x | 1.5x | 50 % | 1 (3) |"
    assert rows[1].count("|") == rows[0].count("|") and rows[1].endswith("| 1 (3) |")
