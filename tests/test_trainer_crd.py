"""Contrastive representation distillation: which images are contrasts, the loss, banks in the checkpoint."""

import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from trainer_runs import SMALL, torch_settings  # noqa: F401

from python_trainers import crd
from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint
from python_trainers.common.data import Batch, contrasts
from python_trainers.common.data.contrasts import Contrasts
from python_trainers.common.errors import TrainerError
from python_trainers.common.models import build_network
from python_trainers.common.teacher import Teacher

pytestmark = pytest.mark.trainers
CLASSES, IMAGES = 10, 40


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "crd"
    torch.set_num_threads(1)
    assert crd.main(["--smoke", *SMALL, "--out", str(out)]) == 0
    return out


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_smoke_run_logs_both_directions_and_learns(smoke):
    first, *_, last = entries(smoke)
    assert last["loss"] < first["loss"] and last["crd"] < first["crd"]
    for entry in entries(smoke):
        assert entry["crd"] == pytest.approx(entry["crd_student"] + entry["crd_teacher"], rel=1e-6)
        assert entry["loss"] == pytest.approx(entry["ce"] + 0.8 * entry["crd"], rel=1e-6)
    assert (smoke / "curves.png").exists()


def test_checkpoint_holds_network_and_what_stood_beside_it(smoke):
    tracked = load_checkpoint(checkpoint_path(smoke))["tracked"]
    assert tracked["model"].keys() == build_network("small_convnet", (1, 8, 8), CLASSES).state_dict().keys()
    beside = tracked["beside"]
    for name in ("student", "teacher"):
        assert beside[f"{name}_bank"].shape == (50, 128)
        # Images came by: their embeddings have length 1, which the first, random ones had on average only.
        torch.testing.assert_close(beside[f"{name}_bank"].norm(dim=1), torch.ones(50))
        assert beside[f"{name}_normalizer"] > 0
        assert f"{name}_head.weight" in beside


def test_default_negatives_are_what_the_largest_class_leaves(smoke):
    assert json.loads((smoke / "summary.json").read_text())["configuration"]["negatives"] == 45
    labels = torch.arange(20_000) % 2
    assert Contrasts(labels, 2, None, relax=False).negatives == 10_000
    assert Contrasts(torch.arange(40_000) % 2, 2, None, relax=False).negatives == 16384


# Unbalanced, one class absent, not in order; class 1 has half of all images.
LABELS = torch.tensor([0, 1, 1, 3, 1, 0, 1, 4, 1, 3, 1, 1, 4, 3])


def drawn(negatives, *, relax=False, rounds=400):
    """Contrasts of every image, many times over: index [rows], contrast [rows, K + 1]."""
    torch.manual_seed(0)
    index = torch.arange(len(LABELS)).repeat(rounds)
    return index, Contrasts(LABELS, 5, negatives, relax=relax).draw(index)


@pytest.mark.parametrize("way", ["distinct", "with replacement", "many images"])
def test_negatives_are_uniform_over_the_images_of_other_classes(way, monkeypatch):
    if way == "many images":
        monkeypatch.setattr(contrasts, "DISTINCT_UP_TO", len(LABELS) - 1)
    negatives = 11 if way == "with replacement" else 5  # class 1 leaves 7
    index, contrast = drawn(negatives)
    assert contrast.shape == (len(index), negatives + 1) and contrast.dtype == torch.int64
    assert torch.equal(contrast[:, 0], index)
    assert (LABELS[contrast[:, 1:]] != LABELS[index].unsqueeze(1)).all()
    counts = torch.zeros(len(LABELS), len(LABELS))
    counts.index_put_((index.unsqueeze(1), contrast[:, 1:]), torch.ones(()), accumulate=True)
    others = LABELS.unsqueeze(1) != LABELS
    expected = 400 * negatives / others.sum(1, keepdim=True)
    assert ((counts - expected).abs()[others] < 6 * expected.expand_as(counts)[others].sqrt()).all()
    repeated = (contrast[:, 1:].sort(1).values.diff() == 0).any()
    assert repeated == (way != "distinct")


def test_relaxed_positives_are_images_of_the_same_class():
    index, contrast = drawn(5, relax=True)
    positive = contrast[:, 0]
    assert torch.equal(LABELS[positive], LABELS[index])
    for image in range(len(LABELS)):
        same = (LABELS == LABELS[image]).nonzero().flatten()
        assert torch.equal(positive[index == image].unique(), same)


def test_contrasts_need_another_class():
    with pytest.raises(TrainerError, match="all 4 images are of one class"):
        Contrasts(torch.zeros(4, dtype=torch.int64), 1, None, relax=False)


@pytest.fixture
def setting():
    """A student with criterion, a teacher, contrasts, options, a batch; in float64."""
    torch.manual_seed(0)
    args = crd.Args(ce_weight=0.5, kl_weight=0.4, crd_weight=0.3, temperature=3.0, embed_dim=12, negatives=9)
    teacher = Teacher(build_network("small_mlp", (1, 8, 8), CLASSES).double(), 0.0, Accelerator())
    network = build_network("small_convnet", (1, 8, 8), CLASSES)
    student = crd.Student(network, teacher=teacher, images=IMAGES, args=args).double()
    drawer = Contrasts(torch.arange(IMAGES) % CLASSES, CLASSES, args.negatives, relax=False)
    index = torch.randperm(IMAGES)[:8]
    return student, teacher, drawer, args, Batch(torch.randn(8, 1, 8, 8, dtype=torch.float64), index % CLASSES, index)


def nce(embedding, bank, contrast, normaliser):
    """Section 3.2.2 and the official code: the sum over negatives, the mean over images, in float64."""
    n, k = len(bank), contrast.shape[1] - 1
    scores = (bank[contrast] * embedding.unsqueeze(1)).sum(2).div(0.07).exp()
    if normaliser is None:
        normaliser = n * scores.mean().item()
    p, noise = scores / normaliser, k / n + 1e-7
    log_positive = (p[:, 0] / (p[:, 0] + noise)).log()
    log_negative = ((k / n) / (p[:, 1:] + noise)).log().sum(1)
    return -(log_positive + log_negative).mean(), normaliser


def test_loss_is_the_papers_and_the_banks_move(setting):
    """Two steps: the second has the normaliser of the first, and the banks that the first left."""
    student, teacher, drawer, args, batch = setting
    objective = crd.learn_from(teacher, drawer, args, Accelerator())
    normalisers = {"student": None, "teacher": None}
    banks = {name: getattr(student.beside, f"{name}_bank").clone().double() for name in normalisers}
    for step in range(2):
        torch.manual_seed(step)
        loss, parts = objective(student, batch)
        torch.manual_seed(step)
        contrast = drawer.draw(batch.index)

        features = student.network.forward_features(batch.pixels)
        logits, taught = student.network.head(features), teacher(batch.pixels)
        taught_features = teacher.network.forward_features(batch.pixels)
        criterion = student.beside
        ours, theirs = (
            F.normalize(head(rows), dim=1).double()
            for head, rows in (
                (criterion.student_head, features),
                (criterion.teacher_head, taught_features),
            )
        )
        of_student, normalisers["student"] = nce(ours, banks["teacher"], contrast, normalisers["student"])
        of_teacher, normalisers["teacher"] = nce(theirs, banks["student"], contrast, normalisers["teacher"])
        ce = F.cross_entropy(logits, batch.labels)
        kl = 9 * F.kl_div(
            (logits / 3).log_softmax(1), (taught / 3).log_softmax(1), log_target=True, reduction="batchmean"
        )
        expected = 0.5 * ce + 0.4 * kl + 0.3 * (of_student + of_teacher)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(parts["crd_student"], of_student)
        torch.testing.assert_close(parts["crd_teacher"], of_teacher)
        parameters = list(student.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        for ours_, theirs_ in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
            torch.testing.assert_close(ours_, theirs_)

        for name, embedding in (("student", ours), ("teacher", theirs)):
            mixed = 0.5 * banks[name][batch.index] + 0.5 * embedding.detach()
            banks[name][batch.index] = F.normalize(mixed, dim=1)
            bank = getattr(criterion, f"{name}_bank").double()
            torch.testing.assert_close(bank, banks[name])


def test_without_contrast_it_is_plain_distillation(smoke, tmp_path):
    options = ["--smoke", *SMALL, "--preset", "kd", "--teacher", str(smoke / "teacher")]
    assert crd.main([*options, "--out", str(tmp_path)]) == 0
    last = entries(tmp_path)[-1]
    assert "crd" not in last
    assert last["loss"] == pytest.approx(0.1 * last["ce"] + 0.9 * last["kl"], rel=1e-6)
    assert "beside" not in load_checkpoint(checkpoint_path(tmp_path))["tracked"]


def test_long_tails_wrong_labels_and_more_negatives_than_images(smoke, tmp_path):
    options = ["--smoke", "--teacher-model", "small_mlp", "--teacher", str(smoke / "teacher")]
    options += ["--imbalance", "20", "--noisy-labels", "0.3", "--negatives", "3000", "--positive", "relax"]
    options += ["--batch-size", "32"]
    assert crd.main([*options, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["configuration"]["negatives"] == 3000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--negatives", "0"], "--negatives must be >= 1, got 0"),
        (["--embed-dim", "0"], "--embed-dim must be >= 1, got 0"),
        (["--contrast-temperature", "0"], "--contrast-temperature must be > 0 and finite, got 0.0"),
        (["--bank-momentum", "1"], "--bank-momentum must be >= 0 and < 1, got 1.0"),
        (["--crd-weight", "-1"], "--crd-weight must be >= 0 and finite, got -1.0"),
        (["--ce-weight", "0", "--crd-weight", "0"], "must not all be 0"),
        (["--batch-size", "0"], "--batch-size must be >= 1, got 0"),
        (["--student-model", "vgg"], "unknown network 'vgg'"),
        (["--preset", "cifar100-crd-wrn"], "unknown --preset 'cifar100-crd-wrn'"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert crd.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("crd: ") and sentence in error and "\n" not in error
