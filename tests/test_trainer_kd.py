"""The trainer kd: what it writes, exact resume, and the sentences for what can go wrong."""

import errno
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from trainer_process import interrupt
from trainer_runs import SMALL, assert_same_run, epochs_written, torch_settings  # noqa: F401

from python_trainers import cli, demo, kd
from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint
from python_trainers.common.data import Batches, few_images, load_dataset

pytestmark = pytest.mark.trainers
EPOCHS = 4
SMOKE = ["--smoke", "--teacher-model", "small_mlp"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "kd"
    assert kd.main([*SMOKE, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def student(smoke, tmp_path_factory) -> tuple[list[str], Path]:
    """Options of a longer run and the folder of that run, never interrupted."""
    options = [*SMALL, "--teacher", str(smoke / "teacher"), "--epochs", str(EPOCHS)]
    out = tmp_path_factory.mktemp("student") / "uninterrupted"
    torch.set_num_threads(1)
    assert kd.main([*options, "--out", str(out)]) == 0
    return options, out


def test_smoke_run_writes_its_files_and_learns(smoke):
    entries = [json.loads(line) for line in (smoke / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert all(math.isfinite(value) for entry in entries for value in entry.values())
    for name in ("loss", "kl"):
        assert entries[-1][name] < entries[0][name]
    summary = json.loads((smoke / "summary.json").read_text())
    assert summary["figures"]["test_accuracy"] == entries[-1]["test_accuracy"]
    assert summary["configuration"]["temperature"] == 4.0
    assert summary["versions"]["torch"] == torch.__version__
    assert (smoke / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in smoke.rglob("*") if path.name.endswith(".tmp")]


def test_finished_run_is_not_trained_again(smoke, capsys):
    before = checkpoint_path(smoke).stat().st_mtime_ns
    assert kd.main([*SMOKE, "--out", str(smoke)]) == 0
    assert f"{smoke} is finished (3 epochs)" in capsys.readouterr().out
    assert checkpoint_path(smoke).stat().st_mtime_ns == before


def test_seed_decides_the_run_not_whether_its_teacher_was_trained_or_loaded(smoke, tmp_path):
    for seed in (0, 1):
        options = [*SMOKE, "--teacher", str(smoke / "teacher"), "--seed", str(seed)]
        assert kd.main([*options, "--out", str(tmp_path / str(seed))]) == 0
    assert_same_run(tmp_path / "0", smoke)
    assert (tmp_path / "1" / "metrics.jsonl").read_bytes() != (smoke / "metrics.jsonl").read_bytes()


def test_undistilled_run_needs_no_teacher(tmp_path):
    assert kd.main(["--smoke", "--kl-weight", "0", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_interrupted_run_continues_exactly(student, tmp_path, kill, capsys):
    (options, uninterrupted), out = student, tmp_path / "out"
    code, stderr = interrupt("kd", [*options, "--out", str(out)], out, tmp_path / "log", after=2, kill=kill)
    assert epochs_written(out) == 2, stderr
    assert code == (130 if kill == signal.SIGINT else -kill)
    if kill == signal.SIGINT:
        assert "kd: interrupted; all finished epochs are saved" in stderr
        assert "Traceback" not in stderr

    assert kd.main([*options, "--out", str(out)]) == 0
    assert f"{out} continues after epoch 2 of {EPOCHS}" in capsys.readouterr().out
    assert_same_run(out, uninterrupted)


# Four flushes an epoch: checkpoint, its folder, metrics.jsonl, its folder.
@pytest.mark.parametrize("failing_flush", [9, 11], ids=["checkpoint", "metrics"])
def test_full_disk_keeps_the_finished_epochs_and_the_run_continues(
    student, tmp_path, monkeypatch, capsys, failing_flush
):
    options, uninterrupted = student
    flush, flushes = os.fsync, []

    def fill_up(descriptor):
        flushes.append(descriptor)
        if len(flushes) == failing_flush:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    assert kd.main([*options, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "kd: cannot write" in error and "No space left on device" in error and "free space" in error
    assert not list(tmp_path.rglob("*.tmp"))
    assert epochs_written(tmp_path) == 2
    assert len(load_checkpoint(checkpoint_path(tmp_path))["history"]) == (2 if failing_flush == 9 else 3)

    monkeypatch.undo()
    assert kd.main([*options, "--out", str(tmp_path)]) == 0
    assert_same_run(tmp_path, uninterrupted)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, lambda content: b"", lambda content: b"not a checkpoint"]
)
def test_corrupt_checkpoint(student, tmp_path, damage, capsys):
    options, uninterrupted = student
    path = checkpoint_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(damage(checkpoint_path(uninterrupted).read_bytes()))
    assert kd.main([*options, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"kd: checkpoint {path} cannot be read" in error and "delete it to train anew" in error


def test_foreign_checkpoint(student, tmp_path, capsys):
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.zeros(3)}, foreign)
    assert kd.main(["--teacher", str(foreign), "--out", str(tmp_path / "out")]) == 1
    assert f"weights {foreign} do not fit the SmallResNet here; missing there: stem.0.weight" in capsys.readouterr().err


def test_changed_configuration_names_both_values(student, capsys):
    options, uninterrupted = student
    assert kd.main([*options, "--temperature", "2", "--out", str(uninterrupted)]) == 1
    error = capsys.readouterr().err
    assert f"kd: {uninterrupted} holds a run with other options (temperature 4.0 there, 2.0 here)" in error
    assert "give another --out" in error


def test_unfinished_teacher(student, tmp_path, capsys):
    _, uninterrupted = student
    state = load_checkpoint(checkpoint_path(uninterrupted))
    torch.save({**state, "history": state["history"][:2]}, tmp_path / "stopped.pt")
    options = ["--teacher-model", "small_convnet", "--teacher", str(tmp_path / "stopped.pt")]
    assert kd.main([*options, "--out", str(tmp_path / "out")]) == 1
    assert (
        f"stopped after epoch 2 of {EPOCHS}; continue it with its own command first"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dataset", "imagenet"], "unknown --dataset 'imagenet'; there is: digits"),
        (["--data-root", "/nowhere/data"], "--data-root /nowhere/data is not a folder; / holds "),
        (["--train-images", "3"], "--train-images must be 10 (one per class) to 990, or 1000 (all), got 3"),
        (["--batch-size", "0"], "--batch-size must be >= 1, got 0"),
        (["--temperature", "0"], "--temperature must be > 0 and finite, got 0.0"),
        (["--kl-weight", "-1"], "--kl-weight must be >= 0 and finite, got -1.0"),
        (["--epochs", "0"], "--epochs must be >= 1, got 0"),
        (["--momentum", "1"], "--momentum must be >= 0 and < 1, got 1.0"),
        (["--seed", "-1"], "--seed must be 0 to 4294967295, got -1"),
        (
            ["--student-model", "vgg"],
            "unknown network 'vgg'; there is: vgg8",
        ),
        (["--teacher", "/nowhere/state.pt"], "checkpoint /nowhere/state.pt does not exist"),
        (["--learning-rate", "1e9", "--kl-weight", "0"], "lower --learning-rate"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert kd.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("kd: ") and sentence in error
    assert "\n" not in error


def test_out_that_is_a_file(tmp_path, capsys):
    out = tmp_path / "file"
    out.write_text("")
    assert kd.main(["--smoke", "--kl-weight", "0", "--out", str(out)]) == 1
    assert "kd: cannot write" in capsys.readouterr().err


def test_unknown_option(capsys):
    with pytest.raises(SystemExit) as stop:
        kd.main(["--temprature", "2"])
    assert stop.value.code == 2


def test_digits_split_is_fixed_and_the_few_images_are_stratified():
    dataset = load_dataset("digits", None)
    assert (len(dataset.train), len(dataset.test)) == (1000, 797)
    assert torch.equal(dataset.train.pixels, load_dataset("digits", None).train.pixels)
    few = few_images(dataset, 50, seed=3)
    assert few.labels.bincount().tolist() == [5] * 10
    assert not torch.equal(few.pixels, few_images(dataset, 50, seed=4).pixels)


def test_batches_shift_by_at_most_one_pixel_and_continue_from_their_state():
    dataset = load_dataset("digits", None)
    few = few_images(dataset, 20, seed=0)
    batches = Batches(
        few,
        batch_size=16,
        images_per_epoch=50,
        background=dataset.background,
        seed=0,
        accelerator=Accelerator(),
    )
    first = list(batches)
    assert len(first) == len(batches) == 3 and first[0][0].shape == (16, 1, 8, 8)
    state = batches.state_dict()
    second = torch.cat([batch.pixels for batch in batches])
    batches.load_state_dict(state)
    assert torch.equal(second, torch.cat([batch.pixels for batch in batches]))

    padded = torch.nn.functional.pad(few.pixels, (1, 1, 1, 1), value=dataset.background)
    shifted = {
        (window.numpy().tobytes(), label.item())
        for down in range(3)
        for right in range(3)
        for window, label in zip(padded[..., down : down + 8, right : right + 8], few.labels, strict=True)
    }
    assert all(
        (image.numpy().tobytes(), label.item()) in shifted
        for batch in first
        for image, label in zip(batch.pixels, batch.labels, strict=True)
    )


def test_console_command(capsys, tmp_path):
    assert cli.main([]) == 0
    assert "kd " in capsys.readouterr().out
    assert cli.main(["distil"]) == 2
    assert "unknown method 'distil'" in capsys.readouterr().err
    assert cli.main(["kd", "--epochs", "0"]) == 1


def test_tools_are_reachable_but_no_methods(capsys):
    assert cli.main(["--help"]) == 0
    methods, tools = capsys.readouterr().out.split("Several methods at once:")
    assert all(f"  {name} " in methods for name in ("born_again", "crd", "ka_dtd", "kd", "okddip", "sskd", "tf_kd"))
    assert "  compare " in tools and "  demo " in tools
    assert cli.main(["compare", "--seeds", "0"]) == 1


def test_demo_compares_with_the_undistilled_student_of_the_same_seed():
    seeds = [(0.80, 0.90), (0.82, 0.91), (0.84, 0.92)]
    comparison = demo.compare(
        [
            {"undistilled": {"test_accuracy": plain}, "distilled": {"test_accuracy": taught}}
            for plain, taught in seeds
        ]
    )
    assert comparison["mean"] == pytest.approx({"undistilled": 82, "distilled": 91})
    assert comparison["spread"] == pytest.approx({"undistilled": 2, "distilled": 1})
    assert comparison["gain"] == pytest.approx({"distilled": 9})
    assert comparison["spread_of_gain"] == pytest.approx({"distilled": 1})
