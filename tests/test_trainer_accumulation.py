"""Gradients accumulated over parts of a batch are those of the batch, or are refused."""

import json

import pytest
import torch
from accelerate import Accelerator
from trainer_process import interrupt
from trainer_runs import assert_same_run, epochs_written, torch_settings, weights  # noqa: F401

from python_trainers import born_again, crd, ka_dtd, kd, sskd
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers
# A network without batch normalization, which would normalize each part by its own statistics.
OPTIONS = {"kl_weight": 0.0, "train_images": 50, "epochs": 2, "learning_rate": 0.05}
COMMAND = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
VARIABLE = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"  # set by accelerate's launcher


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in batches of 64."""
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    kd.train(kd.Args(**OPTIONS, out=out))
    return out


@pytest.mark.parametrize("asked", ["option", "launcher", "accelerator"])
def test_parts_equal_the_batch(asked, whole, tmp_path, monkeypatch):
    if asked == "launcher":
        monkeypatch.setenv(VARIABLE, "4")
    accelerator = Accelerator(gradient_accumulation_steps=4) if asked == "accelerator" else None
    args = kd.Args(**OPTIONS, out=tmp_path, grad_accum_steps=4 if asked == "option" else 1)
    summary = kd.train(args, accelerator=accelerator)
    assert summary["configuration"]["grad_accum_steps"] == 4
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (tmp_path, whole)
    )
    for entry, other in zip(ours, theirs, strict=True):
        assert entry == pytest.approx(other, rel=2e-5, abs=2e-6)
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(weight, weights(whole)[name], rtol=1e-4, atol=1e-5)


def test_run_killed_within_an_accumulated_batch_continues_exactly(tmp_path):
    options = [*COMMAND, "--grad-accum-steps", "4"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert kd.main([*options, "--out", str(uninterrupted)]) == 0
    _, stderr = interrupt("kd", [*options, "--out", str(killed)], killed, tmp_path / "log")
    assert epochs_written(killed) == 1, stderr
    assert kd.main([*options, "--out", str(killed)]) == 0
    assert_same_run(killed, uninterrupted)


def test_parts_that_are_no_part_of_the_batch(tmp_path, capsys, monkeypatch):
    assert kd.main([*COMMAND, "--grad-accum-steps", "5", "--out", str(tmp_path)]) == 1
    assert "kd: --grad-accum-steps must divide --batch-size, got 5 and 64" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, "3")
    assert kd.main([*COMMAND, "--out", str(tmp_path)]) == 1
    assert "kd: --grad-accum-steps must divide --batch-size, got 3 and 64" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, "2")
    assert kd.main([*COMMAND, "--grad-accum-steps", "4", "--out", str(tmp_path)]) == 1
    assert "--grad-accum-steps 4 contradicts the accelerator's gradient_accumulation_steps 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (sskd.Args(grad_accum_steps=2), "rows are compared with all others of the batch"),
        (crd.Args(grad_accum_steps=2), "a batch must not meet its own embeddings in the banks"),
        (born_again.Args(grad_accum_steps=2, loss="cwtm"), "confidences are divided by their mean"),
        (ka_dtd.Args(grad_accum_steps=2, temperature_mode="cwsm"), "temperatures depend on means"),
    ],
)
def test_losses_that_are_no_mean_over_images(args, why):
    with pytest.raises(TrainerError, match=f"--grad-accum-steps must be 1: {why}"):
        args.check()


def test_launcher_that_asks_such_a_method_to_accumulate(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    with pytest.raises(TrainerError, match="--grad-accum-steps must be 1: rows are compared"):
        sskd.train(sskd.Args(out=tmp_path))
