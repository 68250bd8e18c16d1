"""Teacher-free distillation: who teaches whom in each mode, and the losses of paper and code."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainer_runs import torch_settings  # noqa: F401

from python_trainers import tf_kd
from python_trainers.common.data import Batch

pytestmark = pytest.mark.trainers
ROWS, CLASSES = 6, 5
MODES = ("kd", "re_kd", "de_kd", "self", "reg", "lsr", "baseline")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A smoke run of every mode."""
    torch.set_num_threads(1)
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}
    for mode, out in folders.items():
        options = ["--smoke", "--mode", mode, "--train-images", "50", "--teacher-model", "small_mlp"]
        assert tf_kd.main([*options, "--out", str(out)]) == 0
    return folders


def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize(
    ("mode", "teacher", "taught_on", "learner"),
    [
        ("kd", "small_mlp", 1000, "small_convnet"),
        ("de_kd", "small_mlp", 1000, "small_convnet"),
        ("re_kd", "small_convnet", 50, "small_mlp"),
        ("self", "small_convnet", 50, "small_convnet"),
    ],
)
def test_who_teaches_whom(runs, mode, teacher, taught_on, learner):
    teaching = summary(runs[mode] / "teacher")
    assert teaching["configuration"]["network"] == teacher
    assert teaching["figures"]["train_images"] == taught_on
    assert summary(runs[mode])["configuration"]["network"] == learner
    assert summary(runs[mode])["figures"]["train_images"] == 50


@pytest.mark.parametrize("mode", ["reg", "lsr", "baseline"])
def test_modes_without_a_teacher(runs, mode):
    assert not (runs[mode] / "teacher").exists()
    assert summary(runs[mode])["configuration"]["teacher"] is None


def test_poor_teacher_has_its_own_number_of_epochs():
    args = tf_kd.Args(mode="de_kd", epochs=40, teacher_epochs=2)
    assert args.pretraining().epochs == 2
    assert tf_kd.Args(mode="self", epochs=40, teacher_epochs=2).pretraining().epochs == 40


def test_default_alpha_is_that_of_the_mode(runs):
    assert summary(runs["reg"])["configuration"]["alpha"] == 0.1
    assert summary(runs["kd"])["configuration"]["alpha"] == 0.95


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    return Batch(student, torch.randint(CLASSES, (ROWS,), generator=generator), torch.arange(ROWS))


@pytest.fixture
def taught():
    return 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(batch, taught=None, **options):
    """The objective's value where the learner's logits are the pixels."""
    return tf_kd.learn_from(lambda pixels: taught, tf_kd.Args(**options))(nn.Identity(), batch)[0]


def kl(p, log_q):
    return (p * (p.log() - log_q)).sum(-1).mean()


@pytest.mark.parametrize("mode", ["kd", "re_kd", "de_kd", "self"])
@pytest.mark.parametrize("form", ["paper", "code"])
def test_loss_of_a_teacher(batch, taught, mode, form):
    options = {"mode": mode, "form": form, "alpha": 0.6, "temperature": 3.0, "multiplier": 7.0}
    soft = kl((taught / 3).softmax(-1), (batch.pixels / 3).log_softmax(-1))
    hard = F.cross_entropy(batch.pixels, batch.labels)
    scale = 9 * 7 if form == "code" else 1
    torch.testing.assert_close(loss_of(batch, taught, **options), 0.4 * hard + 0.6 * scale * soft)
    elementwise = loss_of(batch, taught, **options, reduction="elementmean")
    torch.testing.assert_close(elementwise, 0.4 * hard + 0.6 * scale * soft / CLASSES)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_loss_of_the_virtual_teacher(batch, form):
    options = {"mode": "reg", "form": form, "alpha": 0.3, "temperature": 2.0, "multiplier": 7.0}
    handmade = torch.full((ROWS, CLASSES), 0.01 / (CLASSES - 1), dtype=torch.float64)
    handmade.scatter_(1, batch.labels.unsqueeze(1), 0.99)
    log_q = (batch.pixels / (2 if form == "paper" else 1)).log_softmax(-1)
    soft = kl((handmade / 2).softmax(-1), log_q)
    expected = 0.7 * F.cross_entropy(batch.pixels, batch.labels) + 0.3 * (7 if form == "code" else 1) * soft
    torch.testing.assert_close(loss_of(batch, **options), expected)


def test_codes_virtual_teacher_is_scaled_label_smoothing(batch):
    """Its gradient; with ResNet-18's setting (alpha 0.1, multiplier = classes) the scale is 1."""
    loss_of(batch, mode="reg", alpha=0.1, multiplier=CLASSES, reduction="elementmean").backward()
    gradient, batch.pixels.grad = batch.pixels.grad, None
    off = 1 / (CLASSES - 1 + torch.tensor((0.99 - 0.01 / (CLASSES - 1)) / 20, dtype=torch.float64).exp())
    loss_of(batch, mode="lsr", smoothing=(0.1 * CLASSES * off).item()).backward()
    torch.testing.assert_close(gradient, batch.pixels.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("convention", ["paper", "others"])
def test_loss_of_smoothed_labels(batch, convention):
    target = torch.full((ROWS, CLASSES), 0.2 / (CLASSES if convention == "paper" else CLASSES - 1)).double()
    on = 0.8 + 0.2 / CLASSES if convention == "paper" else 0.8
    target.scatter_(1, batch.labels.unsqueeze(1), on)
    expected = -(target * batch.pixels.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss_of(batch, mode="lsr", smoothing=0.2, convention=convention), expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--alpha", "1.5"], "--alpha must be between 0 and 1, got 1.5"),
        (["--temperature", "0"], "--temperature must be > 0 and finite, got 0.0"),
        (["--multiplier", "0"], "--multiplier must be > 0 and finite, got 0.0"),
        (["--correct-prob", "-1"], "--correct-prob must be between 0 and 1, got -1.0"),
        (["--smoothing", "2"], "--smoothing must be between 0 and 1, got 2.0"),
        (["--teacher-epochs", "0"], "--teacher-epochs must be >= 1, got 0"),
        (["--preset", "resnet18"], "unknown --preset 'resnet18'"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert tf_kd.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("tf_kd: ") and sentence in error and "\n" not in error


def test_unknown_mode(capsys):
    with pytest.raises(SystemExit) as stop:
        tf_kd.main(["--mode", "ckd"])
    assert stop.value.code == 2
