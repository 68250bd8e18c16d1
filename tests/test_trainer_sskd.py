"""Distillation meets self-supervision: rows and rotations, both stages, the head that students share."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from trainer_process import interrupt
from trainer_runs import SMALL, assert_same_run, epochs_written, torch_settings, weights  # noqa: F401

from python_trainers import sskd
from python_trainers.common.data import Augmentation, Batch
from python_trainers.common.data.rotations import FourRotations, four_rotations
from python_trainers.common.models import build_network
from python_trainers.common.teacher import Teacher

pytestmark = pytest.mark.trainers
IMAGES, CLASSES = 6, 10


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "sskd"
    torch.set_num_threads(1)
    assert sskd.main(["--smoke", *SMALL, "--out", str(out)]) == 0
    return out


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def heads(run):
    return sorted((run / "teacher").glob("head-*"))


def test_smoke_run_logs_terms_and_selections_and_learns(smoke):
    first, *_, last = entries(smoke)
    for name in ("loss", "ce", "kl", "kl_rotated"):
        assert 0 < last[name] < first[name]
    assert last["similarity"] > 0
    assert all(entry["kept_rotated"] == 1 for entry in entries(smoke))  # the default keeps all
    assert all(0.7 < entry["kept_similarity"] < 1 for entry in entries(smoke))
    (head,) = heads(smoke)
    stage_1 = entries(head)
    assert 0 < stage_1[-1]["loss"] < stage_1[0]["loss"] and 0 < stage_1[-1]["nearest"] < 1
    assert "test_accuracy" not in stage_1[-1]
    assert (smoke / "curves.png").exists()


def test_rotations_are_counter_clockwise_in_the_order_of_the_rows():
    image = torch.tensor([[1, 2], [3, 4]]).view(1, 1, 2, 2)
    rows = four_rotations(torch.cat([image, 10 * image]))
    turned = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert rows[:4, 0].tolist() == turned
    assert torch.equal(rows[4:], 10 * rows[:4])


def test_an_image_is_flipped_once_and_each_copy_shifted_on_its_own():
    augmentation = FourRotations(**asdict(Augmentation(padding=2, flip=True)))
    generator = torch.Generator().manual_seed(0)
    draws = augmentation.draw(64, generator)
    assert draws["flipped"].shape == (64,) and draws["flipped"].unique().tolist() == [False, True]
    assert draws["down"].shape == draws["right"].shape == (64, 4)
    assert (draws["down"] != draws["down"][:, :1]).any() and (draws["down"] != draws["right"]).any()

    pixels = torch.arange(1, 64 * 25 + 1).view(64, 1, 5, 5)
    rows = augmentation.apply(pixels, draws, background=0)
    flipped = torch.where(draws["flipped"].view(-1, 1, 1, 1), pixels.flip(3), pixels)
    for i, r in ((0, 0), (3, 1), (17, 2), (63, 3)):
        turned = torch.rot90(flipped[i, 0], r)
        down, right = int(draws["down"][i, r]), int(draws["right"][i, r])
        expected = F.pad(turned, (2, 2, 2, 2))[down : down + 5, right : right + 5]
        assert torch.equal(rows[4 * i + r, 0], expected)
    # Without shifts copies are turned alone, and nothing is drawn for them.
    upright = FourRotations()
    assert upright.draw(3, generator) == {}
    assert torch.equal(upright.apply(pixels, {}, 0), four_rotations(pixels))


def test_split_tells_rotated_rows_from_upright_ones():
    rows = torch.arange(12).unsqueeze(1)
    upright, rotated = sskd.split(rows, Accelerator())
    assert upright.flatten().tolist() == [0, 4, 8]
    assert rotated.flatten().tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert sskd.image_of(rotated).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.fixture
def networks():
    """Student with head, teacher, its head, in float64, and a batch."""
    torch.manual_seed(0)
    student = sskd.Student(build_network("small_convnet", (1, 8, 8), CLASSES)).double()
    teacher = Teacher(build_network("small_mlp", (1, 8, 8), CLASSES).double(), 0.0, Accelerator())
    head = sskd.projection_head(teacher.network.num_features).double()
    pixels = four_rotations(torch.randn(IMAGES, 1, 8, 8, dtype=torch.float64))
    return student, teacher, head, Batch(pixels, torch.randint(CLASSES, (IMAGES,)), torch.arange(IMAGES))


def cosines(rows):
    """A [3 B, B] of head outputs [4 B, D], entry by entry."""
    return torch.stack(
        [
            torch.stack([F.cosine_similarity(rows[4 * i + r], rows[4 * k], dim=0) for k in range(IMAGES)])
            for i in range(IMAGES)
            for r in (1, 2, 3)
        ]
    )


def softened_kl(teacher, student, temperature):
    """T^2 KL of one row."""
    p, q = (logits.div(temperature).log_softmax(0) for logits in (teacher, student))
    return temperature**2 * (p.exp() * (p - q)).sum()


def kept(errors, ratio):
    """Rows of rank 0, and of the others so many of the smallest ranks, in order of the rows."""
    wrong = sorted((rank, row) for row, rank in enumerate(errors) if rank > 0)
    return [row for row, rank in enumerate(errors) if rank == 0] + [
        row for _, row in wrong[: int(len(wrong) * ratio)]
    ]


def ranks(scores, own):
    return [int((row > row[column]).sum()) for row, column in zip(scores, own, strict=True)]


def test_loss_is_the_papers(networks):
    """Sums over rows, written out; ratios that leave some rows and drop others."""
    student, teacher, head, batch = networks
    options = {
        "temperature": 3.0,
        "rotated_temperature": 2.0,
        "similarity_temperature": 0.4,
        "ce_weight": 0.3,
        "kl_weight": 0.7,
        "rotated_weight": 1.3,
        "similarity_weight": 5.0,
        "rotated_ratio": 0.4,
        "similarity_ratio": 0.6,
    }
    objective = sskd.learn_from(teacher, head, sskd.Args(**options), Accelerator())
    loss, parts = objective(student, batch)
    gradients = torch.autograd.grad(loss, list(student.parameters()))

    features = student.network.forward_features(batch.pixels)
    logits, compared = student.network.head(features), student.beside(features)
    taught_features = teacher.network.forward_features(batch.pixels)
    taught = teacher.network.head(taught_features).detach()
    taught_compared = head(taught_features).detach()
    upright = [4 * i for i in range(IMAGES)]
    rotated = [4 * i + r for i in range(IMAGES) for r in (1, 2, 3)]
    image = [row // 4 for row in rotated]

    ce = F.cross_entropy(logits[upright], batch.labels)
    kl = sum(softened_kl(taught[row], logits[row], 3.0) for row in upright) / IMAGES
    by_class = kept(ranks(taught[rotated], batch.labels[image]), 0.4)
    kl_rotated = sum(softened_kl(taught[rotated[j]], logits[rotated[j]], 2.0) for j in by_class)
    of_teacher, of_student = cosines(taught_compared), cosines(compared)
    by_image = kept(ranks(of_teacher, image), 0.6)
    similarity = sum(softened_kl(of_teacher[j], of_student[j], 0.4) for j in by_image)
    expected = {
        "ce": ce,
        "kl": kl,
        "kl_rotated": kl_rotated / len(by_class),
        "similarity": similarity / len(by_image),
    }
    assert 0 < len(by_class) < len(rotated) and 0 < len(by_image) < len(rotated)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, msg=name)
    assert parts["kept_rotated"].item() == pytest.approx(len(by_class) / len(rotated))
    assert parts["kept_similarity"].item() == pytest.approx(len(by_image) / len(rotated))
    total = sum(
        options[f"{name}_weight"] * value
        for name, value in zip(("ce", "kl", "rotated", "similarity"), expected.values(), strict=True)
    )
    torch.testing.assert_close(loss, total)
    for ours, theirs in zip(gradients, torch.autograd.grad(total, list(student.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_head_learns_by_the_papers_loss(networks):
    _, teacher, head, batch = networks
    loss, parts = sskd.tell_images_apart(teacher, Accelerator())(head, batch)
    scores = cosines(head(teacher.network.forward_features(batch.pixels)))
    image = torch.arange(3 * IMAGES) // 3
    torch.testing.assert_close(loss, F.cross_entropy(scores, image))  # temperature 1
    assert parts["nearest"].item() == pytest.approx((scores.argmax(1) == image).float().mean().item())


def test_one_image_has_nothing_to_be_told_from(networks):
    student, teacher, head, batch = networks
    one = Batch(batch.pixels[:4], batch.labels[:1], batch.index[:1])
    _, parts = sskd.learn_from(teacher, head, sskd.Args(), Accelerator())(student, one)
    assert parts["similarity"] == 0 and parts["kept_similarity"] == 1


def test_students_of_a_teacher_share_its_head(smoke, tmp_path):
    (head,) = heads(smoke)
    before = {path: path.stat().st_mtime_ns for path in head.rglob("*")}
    options = ["--smoke", *SMALL, "--teacher", str(smoke / "teacher"), "--similarity-weight", "3"]
    assert sskd.main([*options, "--seed", "1", "--out", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in head.rglob("*")} == before
    assert not (tmp_path / "teacher").exists()
    configurations = [
        json.loads((run / "summary.json").read_text())["configuration"] for run in (smoke, tmp_path)
    ]
    assert configurations[0]["teacher_head"] == configurations[1]["teacher_head"]


def test_head_follows_from_the_teacher_and_its_recipe_not_from_the_student(smoke, tmp_path):
    """Another seed, other images; of a teacher that is a file, the head lies beside the student."""
    (head,) = heads(smoke)
    file = smoke / "teacher" / "checkpoint" / "state.pt"
    options = ["--smoke", "--teacher-model", "small_mlp"]
    assert sskd.main([*options, "--seed", "5", "--teacher", str(file), "--out", str(tmp_path / "same")]) == 0
    (same,) = heads(tmp_path / "same")
    assert_same_run(same, head)

    shutil.copytree(smoke / "teacher", tmp_path / "teacher")
    options += ["--head-learning-rate", "0.01", "--teacher", str(tmp_path / "teacher")]
    for seed in ("0", "1"):
        assert sskd.main([*options, "--seed", seed, "--out", str(tmp_path / f"other-{seed}")]) == 0
    first, second = heads(tmp_path)
    assert (first.name, second.name) == ("head-1", "head-2")
    assert_same_run(first, head)
    rate = json.loads((second / "summary.json").read_text())["configuration"]["learning_rate"]
    assert rate == 0.01


def test_teacher_is_frozen(smoke, tmp_path):
    before = weights(smoke / "teacher")
    assert sskd.main(["--smoke", *SMALL, "--teacher", str(smoke / "teacher"), "--out", str(tmp_path)]) == 0
    assert all(torch.equal(weight, before[name]) for name, weight in weights(smoke / "teacher").items())
    assert_same_run(tmp_path, smoke)


def test_head_killed_in_the_middle_continues_exactly(tmp_path, capsys):
    options = [*SMALL, "--epochs", "1", "--teacher-epochs", "1", "--head-epochs", "3"]
    runs = {name: tmp_path / name for name in ("uninterrupted", "killed")}
    assert sskd.main([*options, "--out", str(runs["uninterrupted"])]) == 0
    (head,) = heads(runs["uninterrupted"])
    interrupted = runs["killed"] / "teacher" / head.name
    interrupt("sskd", [*options, "--out", str(runs["killed"])], interrupted, tmp_path / "log")
    assert epochs_written(interrupted) == 1 and not (runs["killed"] / "metrics.jsonl").exists()

    assert sskd.main([*options, "--out", str(runs["killed"])]) == 0
    assert f"{interrupted} continues after epoch" in capsys.readouterr().out
    assert_same_run(interrupted, head)
    assert_same_run(runs["killed"], runs["uninterrupted"])


def test_student_can_teach_and_a_head_cannot(smoke, tmp_path, capsys):
    """The student's network is loaded without its head; a head is refused in one sentence."""
    options = ["--smoke", "--train-images", "50", "--teacher-model", "small_convnet"]
    assert sskd.main([*options, "--teacher", str(smoke), "--out", str(tmp_path / "next")]) == 0
    (head,) = heads(smoke)
    capsys.readouterr()
    assert sskd.main(["--smoke", *SMALL, "--teacher", str(head), "--out", str(tmp_path / "head")]) == 1
    error = capsys.readouterr().err.strip()
    assert "holds a projection head of small_mlp, this run needs a small_mlp" in error and "\n" not in error


def test_images_that_are_not_square_are_refused(tmp_path, capsys):
    pixels = np.zeros((20, 1, 8, 6), np.uint8)
    labels = np.arange(20) % 2
    np.savez(tmp_path / "wide.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    options = ["--dataset", "npz", "--data-root", str(tmp_path / "wide.npz"), "--out", str(tmp_path / "out")]
    assert sskd.main([*options, "--batch-size", "8"]) == 1
    error = capsys.readouterr().err.strip()
    assert "they must be square" in error and "are 8x6; cut them first" in error and "\n" not in error
    assert not list((tmp_path / "out").iterdir())  # before the teacher is trained


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rotated-ratio", "1.5"], "--rotated-ratio must be between 0 and 1, got 1.5"),
        (["--similarity-ratio", "-0.1"], "--similarity-ratio must be between 0 and 1, got -0.1"),
        (["--similarity-temperature", "0"], "--similarity-temperature must be > 0 and finite, got 0.0"),
        (["--rotated-temperature", "nan"], "--rotated-temperature must be > 0 and finite, got nan"),
        (["--similarity-weight", "-1"], "--similarity-weight must be >= 0 and finite, got -1.0"),
        (["--head-epochs", "0"], "--head-epochs must be >= 1, got 0"),
        (["--head-milestones", "45", "30"], "--head-milestones must be rising epochs >= 1, got 45 30"),
        (["--head-learning-rate", "0"], "--head-learning-rate must be > 0 and finite, got 0.0"),
        (["--batch-size", "2000"], "--batch-size must be 1 to 1000, the images of an epoch, and a multiple of 1"),
        (["--preset", "arxive"], "there is: arxiv, "),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert sskd.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("sskd: ") and sentence in error and "\n" not in error


def test_teacher_of_another_data_set_is_refused(smoke, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    labels = np.arange(40) % 10
    np.savez(tmp_path / "other.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    options = ["--dataset", "npz", "--data-root", str(tmp_path / "other.npz"), "--batch-size", "8"]
    options += ["--teacher-model", "small_mlp", "--teacher", str(smoke / "teacher")]
    assert sskd.main([*options, "--out", str(tmp_path / "out")]) == 1
    assert "was trained on digits, this run needs npz" in capsys.readouterr().err
