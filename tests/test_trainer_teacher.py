"""Teachers: trained once where --teacher points, shared, and refused if they are something else."""

import json
from dataclasses import replace

import pytest
import torch
from trainer_runs import SMALL, assert_same_run, torch_settings, weights  # noqa: F401

from python_trainers import kd, tf_kd
from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint

pytestmark = pytest.mark.trainers


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that was empty when a student first named it as its --teacher, and that student's run."""
    teacher, out = tmp_path_factory.mktemp("shared") / "teacher", tmp_path_factory.mktemp("first") / "student"
    torch.set_num_threads(1)
    assert kd.main(["--smoke", "--train-images", "50", "--teacher", str(teacher), "--out", str(out)]) == 0
    return teacher, out


def changed(shared, path, **changes):
    """A copy of the shared teacher's checkpoint with other contents."""
    state = load_checkpoint(checkpoint_path(shared[0]))
    torch.save({**state, **changes}, path)
    return path


def test_absent_teacher_is_trained_where_it_is_wanted_on_the_whole_split(shared):
    teacher, out = shared
    summary = json.loads((teacher / "summary.json").read_text())
    assert summary["figures"]["train_images"] == 1000
    assert summary["configuration"]["network"] == "small_resnet"
    assert not (out / "teacher").exists()
    student = json.loads((out / "summary.json").read_text())["figures"]
    assert student["train_images"] == 50
    assert student["teacher_accuracy"] == summary["figures"]["test_accuracy"]


def test_finished_teacher_is_shared_whatever_its_own_options(shared, tmp_path):
    before = checkpoint_path(shared[0]).stat().st_mtime_ns
    options = ["--smoke", "--seed", "1", "--learning-rate", "0.02", "--teacher", str(shared[0])]
    assert kd.main([*options, "--out", str(tmp_path)]) == 0
    assert checkpoint_path(shared[0]).stat().st_mtime_ns == before


def test_teacher_is_neither_trained_nor_in_training_mode(shared, tmp_path):
    frozen = {name: weight.clone() for name, weight in weights(shared[0]).items()}
    options = ["--smoke", "--seed", "2", "--teacher", str(checkpoint_path(shared[0]))]
    seen = []

    def watch(teacher, args):
        seen.append(teacher)
        return kd_objective(teacher, args)

    kd_objective = kd.learn_from
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd, "learn_from", watch)
        assert kd.main([*options, "--out", str(tmp_path)]) == 0
    network = seen[0].network
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    # Running statistics of batch normalisation included.
    assert all(torch.equal(weight, frozen[name]) for name, weight in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "small_mlp"}, "holds a small_mlp, this run needs a small_resnet"),
        ({"configuration": {"dataset": "cifar10"}}, "was trained on cifar10, this run needs digits"),
        ({"epochs": 9}, "stopped after epoch 3 of 9; continue it with its own command first"),
    ],
    ids=["network", "data set", "unfinished"],
)
def test_refused(shared, tmp_path, changes, sentence, capsys):
    path = changed(shared, tmp_path / "other.pt", **changes)
    assert kd.main(["--teacher", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"kd: {path} ") and sentence in error and "\n" not in error


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("head.weight", "head.weight [7, 64] there, [10, 64] here"), ("stem", "[7, 1, 3, 3] there, [32, 1, 3, 3] here")],
)
def test_other_tensor_shapes_are_refused(shared, tmp_path, name, sentence, capsys):
    tensors = weights(shared[0])
    name = next(key for key in tensors if key.startswith(name))
    tensors[name] = torch.zeros(7, *tensors[name].shape[1:])
    path = changed(shared, tmp_path / "other.pt", tracked={"model": tensors})
    assert kd.main(["--teacher", str(path), "--out", str(tmp_path / "out")]) == 1
    assert sentence in capsys.readouterr().err


def test_recipe_of_its_own(tmp_path):
    options = ["--smoke", *SMALL, "--learning-rate", "0.01", "--out", str(tmp_path)]
    own = ["--teacher-learning-rate", "0.05", "--teacher-batch-size", "32", "--teacher-weight-decay", "0"]
    assert kd.main([*options, *own]) == 0
    names = ("learning_rate", "batch_size", "weight_decay")
    for folder, recipe in ((tmp_path, (0.01, 64, 5e-4)), (tmp_path / "teacher", (0.05, 32, 0))):
        configuration = json.loads((folder / "summary.json").read_text())["configuration"]
        assert tuple(configuration[name] for name in names) == recipe
    # Batch and decay as well as the rate: the weights are those of a run from labels with this recipe.
    recipe = ["--learning-rate", "0.05", "--batch-size", "32", "--weight-decay", "0", "--kl-weight", "0"]
    alone = tmp_path / "alone"
    assert kd.main(["--smoke", "--student-model", "small_mlp", *recipe, "--out", str(alone)]) == 0
    assert_same_run(tmp_path / "teacher", alone)


def test_a_students_first_version_has_the_students_recipe():
    args = tf_kd.Args(mode="self", learning_rate=0.01, teacher_learning_rate=0.05)
    assert args.recipe_of(args.pretraining()).learning_rate == 0.01
    args = replace(args, mode="kd")
    assert args.recipe_of(args.pretraining()).learning_rate == 0.05


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--teacher-learning-rate", "0", "> 0 and finite"),
        ("--teacher-batch-size", "0", ">= 1"),
        ("--teacher-weight-decay", "-1", ">= 0 and finite"),
    ],
)
def test_bad_recipe_of_a_teacher_is_one_sentence(option, value, rule, tmp_path, capsys):
    assert kd.main([option, value, "--out", str(tmp_path)]) == 1
    assert f"kd: {option} must be {rule}, got {value}" in capsys.readouterr().err


def test_own_teacher_of_another_recipe_is_refused(tmp_path, capsys):
    options = ["--smoke", *SMALL, "--out", str(tmp_path)]
    assert kd.main(options) == 0
    assert kd.main([*options, "--learning-rate", "0.5"]) == 1
    error = capsys.readouterr().err
    assert "teacher holds a run with other options (learning_rate 0.01 there, 0.5 here)" in error


def test_bare_weights_in_the_format_of_old_torch(shared, tmp_path):
    """No zip archive, as the published checkpoints of several papers are."""
    file = tmp_path / "old.pth"
    torch.save({"model": weights(shared[0])}, file, _use_new_zipfile_serialization=False)
    options = ["--smoke", *SMALL[:2], "--teacher", str(file), "--out", str(tmp_path / "out")]
    assert kd.main(options) == 0
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())["figures"]
    original = json.loads((shared[0] / "summary.json").read_text())["figures"]
    assert figures["teacher_accuracy"] == original["test_accuracy"]
