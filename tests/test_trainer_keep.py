"""Which weights a run keeps: the last epoch's, the best's, and a moving average beside them."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from trainer_process import interrupt
from trainer_runs import assert_same_run, epochs_written, torch_settings, weights  # noqa: F401

from python_trainers import kd
from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint
from python_trainers.common.data import hold_out, load_dataset
from python_trainers.common.ema import MovingAverage
from python_trainers.common.evaluation import evaluate
from python_trainers.common.metrics import accuracy
from python_trainers.common.models import build_network
from python_trainers.common.resolve import load_trained, resolve_network

pytestmark = pytest.mark.trainers
# After the second epoch the rate is so high that the last epochs are worse.
WORSE = ["--schedule", "milestones", "--milestones", "2", "--decay", "100", "--clip-grad", "1"]
OPTIONS = ["--kl-weight", "0", "--student-model", "small_mlp", "--learning-rate", "0.05", "--epochs", "4", *WORSE]
KEEPING = [*OPTIONS, "--validation", "0.2", "--keep", "best", "--model-ema-decay", "0.9"]
BEST = 2


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A run that kept its best epoch."""
    out = tmp_path_factory.mktemp("best")
    torch.set_num_threads(1)
    assert kd.main([*KEEPING, "--out", str(out)]) == 0
    return out


def history(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run, name):
    return load_checkpoint(checkpoint_path(run))["tracked"][name]


def test_best_is_the_epoch_of_the_largest_validation_accuracy(best):
    entries = history(best)
    assert max(entries, key=lambda entry: entry["validation_accuracy"])["epoch"] == BEST
    assert [entry["kept_epoch"] for entry in entries][1:] == [BEST] * 3


def test_kept_weights_are_those_of_the_best_epoch(best, tmp_path):
    options = [*OPTIONS, "--validation", "0.2", "--out", str(tmp_path)]
    _, stderr = interrupt("kd", options, tmp_path, tmp_path / "log", after=BEST)
    assert epochs_written(tmp_path) == BEST, stderr
    for name, weight in weights(tmp_path).items():
        assert torch.equal(weight, weights(best)[name]), name


def test_figures_are_those_of_the_kept_weights(best):
    dataset = hold_out(load_dataset("digits", None), 0.2)
    network, of_run = load_trained(best, resolve_network("small_mlp", None, dataset), dataset)
    summary = json.loads((best / "summary.json").read_text())["figures"]
    entry = history(best)[BEST - 1]
    assert of_run == summary["test_accuracy"] == entry["test_accuracy"] != history(best)[-1]["test_accuracy"]
    assert accuracy(network, dataset.test, Accelerator()) == of_run
    assert accuracy(network, dataset.validation, Accelerator()) == summary["validation_accuracy"]
    assert evaluate(kd.Args(evaluate=best, student_model="small_mlp"))["top1"] == of_run


def test_average_of_the_best_epoch_is_kept_beside_it(best):
    dataset = load_dataset("digits", None)
    network = build_network("small_mlp", dataset.image_shape, dataset.classes)
    average = {name.removeprefix("module."): weight for name, weight in saved(best, "ema").items()}
    assert average.pop("n_averaged") > 0
    network.load_state_dict(average)
    assert accuracy(network, dataset.test, Accelerator()) == history(best)[BEST - 1]["ema_test_accuracy"]


@pytest.mark.parametrize("after", [1, 3], ids=["before the best", "after the best"])
def test_killed_run_continues_exactly(after, best, tmp_path):
    _, stderr = interrupt("kd", [*KEEPING, "--out", str(tmp_path)], tmp_path, tmp_path / "log", after=after)
    assert epochs_written(tmp_path) == after, stderr
    assert kd.main([*KEEPING, "--out", str(tmp_path)]) == 0
    assert_same_run(tmp_path, best)
    assert (tmp_path / "summary.json").read_bytes() == (best / "summary.json").read_bytes()
    for name, weight in saved(tmp_path, "ema").items():
        assert torch.equal(weight, saved(best, "ema")[name]), name


def test_validation_images_are_not_learned_from(best):
    figures = json.loads((best / "summary.json").read_text())["figures"]
    assert (figures["train_images"], figures["test_images"]) == (800, 797)


def test_best_of_nothing_held_out(tmp_path, capsys):
    assert kd.main(["--keep", "best", "--out", str(tmp_path / "out")]) == 1
    assert "kd: --keep best chooses by the accuracy on held-out images: give --validation" in capsys.readouterr().err


class NoTask:
    def measure(self, network, accelerator):
        return {"accuracy": float(network.weight[0])}


def test_moving_average_is_the_recurrence():
    network = nn.BatchNorm1d(3)
    average, expected = MovingAverage(network, 0.75, NoTask(), Accelerator()), None
    for _ in range(5):
        network(torch.randn(4, 3))
        with torch.no_grad():
            network.weight += torch.randn(3)
        average.after_step()
        now = network.weight.detach().clone()
        expected = now if expected is None else 0.75 * expected + 0.25 * now
    torch.testing.assert_close(average.network.weight.detach(), expected)
    assert not torch.allclose(expected, now)
    network.running_mean += 1  # as where several processes have agreed on their statistics
    assert average.end_epoch(1, {}) == {"ema_accuracy": float(average.network.weight[0])}
    assert torch.equal(average.network.running_mean, network.running_mean)
    assert not average.network.training
