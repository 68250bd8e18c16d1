"""Knowledge adjustment and dynamic temperature: the trainer's loss, and a teacher that errs on purpose."""

import json

import kdkernels as kd
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from trainer_runs import torch_settings  # noqa: F401

from python_trainers import ka_dtd
from python_trainers.common.data import Batch

pytestmark = pytest.mark.trainers
ROWS, CLASSES = 8, 10


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run with a teacher that errs."""
    out = tmp_path_factory.mktemp("smoke") / "ka_dtd"
    torch.set_num_threads(1)
    options = ["--smoke", "--train-images", "50", "--teacher-errors", "0.3", "--teacher-model", "small_mlp"]
    assert ka_dtd.main([*options, "--out", str(out)]) == 0
    return out


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_smoke_run_logs_temperatures(smoke):
    for entry in entries(smoke):
        assert entry["temperature"] == pytest.approx(4.0)  # the mean, since nothing was clamped
        assert entry["clamped"] == 0
    assert (smoke / "curves.png").exists()


def test_clamped_rows_are_counted(smoke, tmp_path):
    options = ["--smoke", "--train-images", "50", "--teacher-model", "small_mlp"]
    options += ["--teacher", str(smoke / "teacher"), "--beta", "100", "--t-min", "3"]
    assert ka_dtd.main([*options, "--out", str(tmp_path)]) == 0
    assert all(0.1 < entry["clamped"] < 0.9 and entry["temperature"] > 4 for entry in entries(tmp_path))


def test_default_beta_keeps_temperatures_positive(smoke, tmp_path):
    assert json.loads((smoke / "summary.json").read_text())["configuration"]["beta"] == 1.0
    options = ["--smoke", "--teacher-model", "small_mlp", "--teacher", str(smoke / "teacher")]
    assert ka_dtd.main([*options, "--temperature-mode", "cwsm", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["configuration"]["beta"] == 0.4


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return Batch(student, torch.randint(CLASSES, (ROWS,), generator=generator), torch.arange(ROWS))


def loss_of(batch, taught, **options):
    """Loss and parts where the student's logits are the pixels."""
    args = ka_dtd.Args(**{"beta": 1.0, **options})
    return ka_dtd.learn_from(lambda pixels: taught, args, Accelerator())(nn.Identity(), batch)


def test_teacher_that_is_always_right_and_one_temperature_are_plain_distillation(batch):
    right = torch.randn(ROWS, CLASSES, dtype=torch.float64).scatter(1, batch.labels.unsqueeze(1), 9.0)
    plain = kd.softened_kl(batch.pixels, right, temperature=4.0)
    for adjust in ("none", "ps", "lsr"):
        torch.testing.assert_close(loss_of(batch, right, adjust=adjust, temperature_mode="const")[0], plain)
        torch.testing.assert_close(loss_of(batch, right, adjust=adjust, beta=0.0)[0], plain)


def test_options_reach_the_loss(batch):
    taught = 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {
        "adjust": "lsr",
        "temperature": 3.0,
        "beta": 2.0,
        "gamma": 0.5,
        "normalize": "l1",
        "t_min": 2.9,
        "smoothing": 0.3,
        "ce_weight": 0.7,
    }
    for mode in ("flsw", "cwsm"):
        expected = kd.dynamic_temperature_kl(batch.pixels, taught, batch.labels, mode=mode, **options)
        torch.testing.assert_close(loss_of(batch, taught, temperature_mode=mode, **options)[0], expected)


def test_scale_of_the_replaced_rows(batch):
    """loss(scale) = kept rows + scale * replaced rows; of those that ps changes there is no such scale."""
    taught = 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    taught[: ROWS // 2].scatter_(1, batch.labels[: ROWS // 2, None], 20.0)
    right = taught.argmax(1) == batch.labels
    assert right.sum() == ROWS // 2
    rows = kd.dynamic_temperature_kl(
        batch.pixels, taught, batch.labels, beta=1.0, adjust="lsr", reduction="none"
    )
    for scale in (0.0, 0.25, 1.0):
        loss, parts = loss_of(batch, taught, adjust="lsr", lsr_scale=scale)
        torch.testing.assert_close(loss, (rows[right].sum() + scale * rows[~right].sum()) / ROWS)
        torch.testing.assert_close(parts["kl"], loss)
    assert loss_of(batch, taught, lsr_scale=0.0)[0] == loss_of(batch, taught)[0]


def test_errors_of_the_teacher_are_a_share_the_same_every_time_and_follow_from_the_seed():
    logits = torch.randn(20_000, CLASSES, generator=torch.Generator().manual_seed(2))
    index = torch.arange(len(logits))
    misled = ka_dtd.mislead(logits, index, 0.2, seed=0)
    wrong = misled.argmax(-1) != logits.argmax(-1)
    assert wrong.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(misled[~wrong], logits[~wrong])
    assert torch.equal(misled.sort(-1).values, logits.sort(-1).values)  # two exchanged, none changed
    moved = (misled[wrong] != logits[wrong]).sum(-1)
    assert (moved == 2).all()
    # Which class takes over is uniform: counted from the one that was largest.
    step = (misled.argmax(-1) - logits.argmax(-1))[wrong] % CLASSES
    counts = step.bincount(minlength=CLASSES)[1:].float()
    assert ((counts / counts.mean() - 1).abs() < 0.2).all()

    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(3))
    assert torch.equal(ka_dtd.mislead(logits[order], index[order], 0.2, seed=0), misled[order])
    assert not torch.equal(ka_dtd.mislead(logits, index, 0.2, seed=1), misled)
    more = ka_dtd.mislead(logits, index, 0.5, seed=0)
    assert torch.equal(more[wrong], misled[wrong])  # a larger share adds to a smaller one
    assert ka_dtd.mislead(logits, index, 0.0, seed=0) is logits
    assert (ka_dtd.mislead(logits, index, 1.0, seed=0).argmax(-1) != logits.argmax(-1)).all()


def test_errors_belong_to_the_image_not_to_its_place_in_the_batch(batch):
    taught = 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"teacher_errors": 0.5, "adjust": "none", "temperature_mode": "const"}
    loss, _ = loss_of(batch, taught, **options)
    turned = Batch(*(part.roll(3, 0) for part in batch))
    torch.testing.assert_close(loss_of(turned, taught.roll(3, 0), **options)[0], loss)
    elsewhere = batch._replace(index=batch.index + 100)
    assert loss_of(elsewhere, taught, **options)[0] != loss


def test_adjustment_repairs_an_erring_teacher(batch):
    right = torch.randn(ROWS, CLASSES, dtype=torch.float64).scatter(1, batch.labels.unsqueeze(1), 9.0)
    options = {"temperature_mode": "const", "teacher_errors": 1.0}
    plain = kd.softened_kl(batch.pixels, right, temperature=4.0)
    torch.testing.assert_close(loss_of(batch, right, adjust="ps", **options)[0], plain)
    assert loss_of(batch, right, adjust="none", **options)[0] != plain


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--teacher-errors", "1.1"], "--teacher-errors must be between 0 and 1, got 1.1"),
        (["--temperature", "0"], "--temperature must be > 0 and finite, got 0.0"),
        (["--t-min", "0"], "--t-min must be > 0 and finite, got 0.0"),
        (["--beta", "-1"], "--beta must be >= 0 and finite, got -1.0"),
        (["--gamma", "nan"], "--gamma must be >= 0 and finite, got nan"),
        (["--smoothing", "-0.1"], "--smoothing must be between 0 and 1, got -0.1"),
        (["--ce-weight", "-1"], "--ce-weight must be >= 0 and finite, got -1.0"),
        (["--lsr-scale", "-1"], "--lsr-scale must be >= 0 and finite, got -1.0"),
        (["--preset", "cifar100-ka-wrn"], "unknown --preset 'cifar100-ka-wrn'"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert ka_dtd.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("ka_dtd: ") and sentence in error and "\n" not in error
