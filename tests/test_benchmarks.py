"""What the benchmarks measure with, what they measure, and the one figure that is no time: memory beyond the inputs."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_runs import LOSSES, document, made_up_packages, uncompiled  # noqa: F401

from benchmarks import __main__ as benchmarks
from benchmarks import harness, machine, packages, row_losses, scaling, tables, targets, timing
from benchmarks.families import FAMILIES, losses
from benchmarks.harness import Effort, copied, draw, errors, halves, measure, rotation, step
from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.packages import PACKAGES
from benchmarks.timing import alternate, alternate_stages, ratio, spread

TINY = {  # axes -> a shape
    "rows x classes": (16, 10),
    "rows x width x classes": (16, 6, 10),
    "rows x all classes": (16, 10),
    "images x classes": (4, 5),
    "images x classes x height x width": (2, 5, 4, 3),
    "rows x classes x joint classes": (16, 10, 40),
    "queries x keys x width": (12, 12, 6),
    "rows x negatives x width, entries": (6, 300, 24, 40),
    "samples x peers x classes x width": (8, 3, 10, 4),
}
TINY = {name: TINY[loss.axes] for name, loss in LOSSES.items()}


# Times


def test_ratio_is_taken_round_by_round():
    times = {"ours": [1.0, 2.0, 4.0], "other": [3.0, 6.0, 12.0]}  # the machine slows down
    assert ratio(times, "other", "ours") == 3.0
    assert spread([1.0, 1.0, 1.0]) == 0.0


def test_contenders_take_turns():
    turns = []
    times = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, "cpu", seconds=0.01, turn=1e-6)
    assert len(times["a"]) == len(times["b"]) >= 5
    assert turns[-1] == "b" and "a" in turns[turns.index("b") :]


def test_every_forward_has_its_backward():
    loss = LOSSES["softened_kl"]
    forward, backward = halves(loss.ours, [draw(loss, (4, 5), torch.float32, "cpu")])
    times = alternate_stages({"a": (forward, backward)}, "cpu", seconds=0.01, turn=1e-4)["a"]
    assert len(times) >= 5 and all(len(stages) == 2 for stages in times)
    with pytest.raises(IndexError):  # none is left over
        backward()


def test_a_turn_begins_with_calls_that_are_not_timed(monkeypatch):
    calls, before = [], []

    def timed(call, repeats, device):
        before.append(len(calls))
        for _ in range(repeats):
            call()
        calls.clear()
        return 1e-3

    monkeypatch.setattr(timing, "timed", timed)
    alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "cpu", seconds=0, turn=8e-3)
    assert before[-2:] == [2, 2]  # of 8 that are


# What is measured


@pytest.mark.parametrize("name", sorted(name for name, loss in LOSSES.items() if loss.comparable))
def test_all_sides_are_the_same_loss(name):
    loss = LOSSES[name]
    given = draw(loss, TINY[name], torch.float32, "cpu")
    found = errors(loss, {"ours": loss.ours, "eager": loss.eager, **loss.others}, given)
    # Logarithms of ratios near 1, as published, lose more of the loss than anything else here.
    bound = 2e-4 if name == "memory_bank_nce" else 1e-5
    assert all(error < bound for side in found.values() for error in side.values()), found
    exact = copied(loss, given, dtype=torch.float64).batch
    assert all(side(exact).dtype == torch.float64 for side in (loss.eager, *loss.others.values()))
    wrong = errors(loss, {"wrong": lambda batch: 1.01 * loss.ours(batch)}, given)["wrong"]
    assert all(error == pytest.approx(0.01, rel=0.1) for error in wrong.values())


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_have_reasons_and_work_is_counted(name):
    loss = LOSSES[name]
    assert loss.shapes.keys() == {"cpu", "cuda", "quick"}
    axes = loss.axes.replace(", ", " x ").split(" x ")
    for shape, reason in [item for of in (*loss.shapes.values(), loss.memory_only) for item in of.items()]:
        assert reason and len(shape) == len(axes)
        single, double = (loss.work(*shape, size=size) for size in (4, 8))
        assert 0 < single.written < single.moved < double.moved <= 2 * single.moved
        assert min(single.operations.values()) > 0 and single.operations == double.operations
    # What is written is what is differentiated.
    leaves = draw(loss, TINY[name], torch.float32, "cpu").leaves
    assert loss.work(*TINY[name], size=4).written == sum(leaf.numel() * 4 for leaf in leaves)


def test_a_divergence_from_logits_moves_twelve_bytes_a_class():
    work = LOSSES["softened_kl"].work(1024, 1000, size=4)
    assert work.moved == 12 * 1024 * 1000 and work.written == 4 * 1024 * 1000
    # [2N, D] against itself: similarities, and a gradient through either side.
    assert LOSSES["supervised_contrastive"].work(100, 100, 8, size=4).computed == 3 * 2 * 200 * 200 * 8


@pytest.mark.parametrize(
    "name, shape, size",
    [(name, (256, 1000), 256 * 1000) for name, loss in LOSSES.items() if loss.axes == row_losses.AXES]
    + [("multi_head_kl", (256, 100, 400), 256 * 1300)]
    + [("okddip_loss", (256, 3, 1000, 8), 256 * 4 * 1000)]
    + [(name, (256, 3, 1000, 8), 256 * 3 * 1000) for name in list(losses("peer_ensemble"))[1:]],
)
def test_the_gradients_are_all_the_memory(name, shape, size):
    loss = LOSSES[name]
    given = [draw(loss, shape, torch.float32, "cpu")]
    assert 4 * size <= peak_bytes(step(loss.ours, given), "cpu") < 1.1 * 4 * size
    assert peak_bytes(step(loss.eager, given), "cpu") > 1.9 * 4 * size


def test_nothing_of_the_size_of_the_scores_is_stored():
    loss = LOSSES["memory_bank_nce"]
    given = [draw(loss, (8, 4096, 64, 1000), torch.float32, "cpu")]
    assert peak_bytes(step(loss.ours, given), "cpu") < 4 * 8 * 64 * 4 < 8 * 4096 * 4
    assert peak_bytes(step(loss.eager, given), "cpu") > 8 * 4096 * 64 * 4


def test_memory_as_the_system_counts_it():
    shape = (2048, 2048, 16)  # a matrix of 16 MiB
    assert resident_bytes("similarity", "info_nce", "eager", shape, torch.float32) > 2048 * 2048 * 4


# How it is measured


def test_inputs_rotate_until_they_fill_the_cache_twice(monkeypatch):
    monkeypatch.setattr(harness, "cache_bytes", lambda device: 4000)
    loss = LOSSES["softened_kl"]
    inputs = rotation(loss, (4, 50), torch.float32, "cpu")  # 1632 bytes each
    assert len(inputs) == 5
    assert not torch.equal(inputs[0].batch.student, inputs[1].batch.student)
    seen = []
    call = step(lambda batch: seen.append(batch) or loss.ours(batch), inputs)
    for _ in range(7):
        call()
    assert [batch is inputs[i % 5].batch for i, batch in enumerate(seen)] == [True] * 7
    monkeypatch.setattr(harness, "MOST_BATCHES", 2)
    assert len(rotation(loss, (4, 50), torch.float32, "cpu")) == 2


def test_the_cache_is_of_a_size_that_caches_have():
    assert 2**18 <= machine.cache_bytes("cpu") <= 2**32


def test_packages_are_skipped_by_name(document):
    result = document["results"][0]
    assert result["absent"] == {
        "numpy": "cannot be imported: No module named 'no_such_module_of_a_package'",
        "pytest": "out of",
        "hypothesis": "needs a GPU",
        "no-such-package": "not installed",
    }
    contenders = result["contenders"]
    assert {"kdkernels", "eager", "compile", "kdkernels, compile", "torch", "copy", "copy, fresh"} == contenders.keys()
    assert result["packages"] == ["torch"]
    assert contenders["eager"]["gradient_error"] < 1e-5
    assert contenders["kdkernels"]["over"] == 1.0
    for name in ("kdkernels", "eager", "torch"):
        assert min(contenders[name][f"{half}_microseconds"] for half in ("forward", "backward")) > 0
        assert contenders[name]["peak_bytes"] > 0


def test_what_a_package_does_to_its_input_is_its_own_business(made_up_packages, uncompiled, monkeypatch):
    seen = []
    monkeypatch.setattr(harness, "errors", lambda loss, functions, given: seen.append((functions, given)) or {})
    measure(LOSSES["softened_kl"], (16, 10), torch.float32, "cpu", Effort(0.01, 0.01))
    ((functions, given),) = seen
    assert "torch" in functions and given.batch.student.abs().max() > 0


def test_every_package_answers_losses_that_are_measured():
    assert {package.distribution for package in PACKAGES} == {
        "liger-kernel",
        "flash-linear-attention",
        "cut-cross-entropy",
        "quack-kernels",
        "inf-cl",
        "pytorch-metric-learning",
    }
    assert all(name in LOSSES for package in PACKAGES for name in package.losses)


@pytest.mark.parametrize("name, loss", [(package.distribution, loss) for package in PACKAGES for loss in package.losses])
def test_an_installed_package_computes_the_same(name, loss, device):
    functions, absent = packages.answering(loss, device)
    if name in absent:
        pytest.skip(f"{name}: {absent[name]}")
    given = draw(LOSSES[loss], (64, 64, 64)[: len(LOSSES[loss].axes.split(" x "))], torch.float32, device)
    assert errors(LOSSES[loss], {name: functions[name]}, given)[name]["loss_error"] < 1e-2  # of products in TF32, perhaps


def test_the_floor_of_a_result(document):
    copied_, multiplied, remembered = document["results"]
    assert copied_["floor"] == "copy" and copied_["share_of_floor"].keys() == {"copy"}
    assert copied_["share_of_floor"]["copy"] == copied_["contenders"]["copy"]["over"]
    assert multiplied["share_of_floor"].keys() == {"copy", "product"}
    assert multiplied["share_of_floor"]["product"] == pytest.approx(3 * multiplied["contenders"]["product"]["over"])
    assert "floor" not in remembered


def test_ratios_and_their_spread_are_kept(uncompiled, monkeypatch):
    ours, others = [1.0, 1.0, 2.0, 2.0, 2.0], [2.0, 2.0, 4.0, 4.0, 8.0]
    monkeypatch.setattr(harness, "alternate", lambda calls, *_: {n: ours if n == "kdkernels" else others for n in calls})
    found = measure(LOSSES["softened_kl"], (16, 10), torch.float32, "cpu", Effort(0.01))["contenders"]["eager"]
    assert found["over"] == 2.0 and found["over_spread"] == spread([2.0, 2.0, 2.0, 2.0, 4.0]) > 0


def test_bfloat16_is_timed_beside_float32(uncompiled):
    loss, seen = LOSSES["softened_kl"], set()
    seeing = replace(loss, ours=lambda batch: seen.add(batch.student.dtype) or loss.ours(batch))
    found = measure(seeing, (16, 10), torch.bfloat16, "cpu", Effort(0.01, 0.01))["contenders"]
    assert seen == {torch.bfloat16, torch.float32}
    assert found["kdkernels, float32"]["over"] > 0
    assert found["kdkernels, float32"].keys() == found["copy"].keys()  # of the same numbers, so neither error nor memory


def test_what_fails_or_finds_no_time_is_named(uncompiled, monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("out of\nmemory")

    effort = Effort(0.01, 0.01)
    late = harness.attempt(LOSSES["softened_kl"], (4, 5), torch.float32, "cpu", effort._replace(until=time.monotonic() - 1))
    monkeypatch.setattr(harness, "measure", failing)
    failed = harness.attempt(LOSSES["softened_kl"], (4, 5), torch.float32, "cpu", effort)
    assert (late["absent"], failed["absent"]) == ({"kdkernels": "no time was left"}, {"kdkernels": "out of"})
    assert failed["contenders"] == {} and "softened_kl (4, 5) torch.float32: out of" in capsys.readouterr().err
    document = {"results": [failed], "rates": {"float32": {}}, "machine": {"threads": 1}}
    assert benchmarks.failed(document) and "`softened_kl`: out of" in tables.absent(document)
    assert "| 4 x 5 |" in tables.table([failed]) and targets.table([document])


def test_a_copy_leaves_its_original_alone():
    loss = LOSSES["softened_kl"]
    given = draw(loss, (4, 5), torch.float32, "cpu")
    other = copied(loss, given, dtype=torch.float64)
    assert other.batch.student.dtype == torch.float64 and other.batch.target.dtype == torch.int64
    assert other.leaves[0] is other.batch.student and other.leaves[0].requires_grad
    other.batch.student.data.zero_()
    assert given.batch.student.abs().max() > 0


# Scaling


def test_sweeps_grow_along_one_axis():
    for device in ("cpu", "cuda"):
        for sweep in scaling.sweeps(device, quick=False):
            sizes = [sweep.size(shape) for shape in sweep.shapes]
            assert sizes == sorted(set(sizes)) and len(sweep.shapes[0]) == len(LOSSES[sweep.loss].axes.split(" x "))


def test_memory_that_torch_does_not_see_is_in_the_scaling(monkeypatch):
    kept = {side: {"resident_bytes": 7} for side in scaling.SIDES}
    monkeypatch.setattr(harness, "resident_memory", lambda *_: kept)
    monkeypatch.setattr(harness, "attempt", lambda *_: {"contenders": {"kdkernels": {"peak_bytes": 3}}})
    found = {sweep["loss"]: sweep["points"][0] for sweep in scaling.measure("cpu", torch.float32, quick=False)}
    assert found["info_nce"]["kdkernels"] == {"peak_bytes": 3, "resident_bytes": 7}
    assert found["softened_kl"]["kdkernels"] == {"peak_bytes": 3}
    assert tables.memory_bytes(found["info_nce"]["kdkernels"]) == 7


def test_only_the_times_of_trainers_need_trainers():
    sources = Path(benchmarks.__file__).parent.glob("*.py")
    assert [path.name for path in sources if "python_trainers" in path.read_text()] == ["trainers.py"]
