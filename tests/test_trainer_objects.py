"""The user's own networks, data, augmentation and accelerator in place of names, in every method."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from trainer_runs import assert_same_run, epochs_written, torch_settings, weights  # noqa: F401

pytest.importorskip("torchvision", reason="the trainers need `pip install kdkernels[trainers]`")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import models
from torchvision.transforms import v2

from python_trainers import born_again, crd, ka_dtd, kd, okddip, sskd, tf_kd
from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint
from python_trainers.common.errors import TrainerError
from python_trainers.common.evaluation import evaluate
from python_trainers.common.models.tapped import Tapped
from python_trainers.common.run import read_summary

pytestmark = pytest.mark.trainers
CLASSES, SHAPE = 4, (3, 8, 8)
FAST = {"epochs": 2, "batch_size": 16, "workers": 0}


class Pairs(Dataset):
    """The mean colour tells the class; every image is changed by what its reader draws."""

    def __init__(self, count: int, *, classes: int = CLASSES, noise: float = 0.1) -> None:
        self.labels_ = [number % classes for number in range(count)]
        self.noise, self.reads, self.stop_at = noise, 0, None

    def __len__(self):
        return len(self.labels_)

    def __getitem__(self, number):
        self.reads += 1
        if self.reads == self.stop_at:
            raise KeyboardInterrupt
        return torch.full(SHAPE, float(self.labels_[number])) + self.noise * torch.randn(SHAPE), self.labels_[number]


class Named(nn.Module):
    """Logits are twice a layer's output, so the features must be named."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
        self.neck, self.out = nn.Linear(72, 16), nn.Linear(16, classes)

    def forward(self, images):
        return 2 * self.out(self.neck(self.body(images).flatten(1)).relu())


def plain(classes: int = CLASSES, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1)
        return nn.Sequential(*layers, nn.Linear(16, classes))


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, CLASSES))


def timms() -> nn.Module:
    return pytest.importorskip("timm").create_model("test_resnet", num_classes=CLASSES)


NETWORKS = {
    "plain": plain,
    "named": lambda: Tapped(Named(), features="neck"),
    "torchvision": lambda: models.shufflenet_v2_x0_5(num_classes=CLASSES),
    "timm": timms,
}
# The methods with all they can be given: a student that may be one module, and one that teaches.
TAUGHT = {
    "kd": (kd, {}),
    "kd of tf_kd": (tf_kd, {"mode": "kd"}),
    "re_kd of tf_kd": (tf_kd, {"mode": "re_kd"}),
    "self of tf_kd": (tf_kd, {"mode": "self"}),
    "crd": (crd, {}),
    "sskd": (sskd, {"head_epochs": 2}),
    "ka_dtd": (ka_dtd, {"teacher_errors": 0.1}),
}
UNTAUGHT = {
    "labels of kd": (kd, {"kl_weight": 0.0}),
    "reg of tf_kd": (tf_kd, {"mode": "reg"}),
    "lsr of tf_kd": (tf_kd, {"mode": "lsr"}),
}
SEVERAL = {  # students are made by a function
    "born_again": (born_again, {"generations": 2}),
    "self of tf_kd": (tf_kd, {"mode": "self"}),
    "okddip": (okddip, {"structure": "network"}),
    "dml of okddip": (okddip, {"method": "dml"}),
}


@pytest.fixture(scope="module")
def data():
    return Pairs(64), Pairs(32)


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


def own(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, Tapped) else module


def run(method, options, out, data, **objects):
    return method.train(method.Args(out=out, **{**FAST, **options}), dataset=data, **objects)


@pytest.mark.parametrize("name", [*TAUGHT, *UNTAUGHT])
def test_the_given_modules_learn_and_teach(name, data, tmp_path):
    method, options = (TAUGHT | UNTAUGHT)[name]
    student, teacher = plain(), plain(seed=1)
    before, of_teacher = copied(student), copied(teacher)
    summary = run(method, options, tmp_path, data, student=student, **({"teacher": teacher} if name in TAUGHT else {}))
    assert summary == read_summary(tmp_path)
    assert summary["configuration"]["network"] == "Sequential of 3,188 weights"
    assert same(copied(student), weights(tmp_path)) and not same(copied(student), before)
    assert same(copied(teacher), of_teacher)
    if name in TAUGHT:
        assert 0 <= summary["figures"]["teacher_accuracy"] <= 1
        assert not any(weight.requires_grad for weight in teacher.parameters()) and not teacher.training
        assert not (tmp_path / "teacher" / "checkpoint").exists()  # nothing was trained to teach


@pytest.mark.parametrize("name", SEVERAL)
def test_several_students_come_from_a_function(name, data, tmp_path):
    method, options = SEVERAL[name]
    made = []

    def student():
        made.append(plain(seed=len(made)))
        return made[-1]

    run(method, options, tmp_path, data, student=student)
    assert any(same(copied(module), weights(tmp_path)) for module in made)
    with pytest.raises(TrainerError, match="give a function that returns a new Sequential of 3,188 weights, not the"):
        run(method, options, tmp_path / "other", data, student=plain())
    assert not (tmp_path / "other" / "checkpoint").exists()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", [sskd, crd])
def test_features_of_any_network(method, network, data, tmp_path):
    options = {"epochs": 1, **({"head_epochs": 1} if method is sskd else {})}
    student, teacher = NETWORKS[network](), NETWORKS[network]()
    run(method, options, tmp_path, data, student=student, teacher=teacher)
    assert same(copied(own(student)), weights(tmp_path))


def test_it_learns(data, tmp_path):
    summary = run(kd, {"epochs": 6, "kl_weight": 0.0, "learning_rate": 0.1}, tmp_path, data, student=plain())
    assert summary["figures"]["test_accuracy"] > 0.7


@pytest.mark.parametrize("student", ["small_convnet", "module"])
def test_names_and_objects_mix(student, data, tmp_path):
    """A teacher by name, trained on the given data, and one run's teacher in another."""
    given = {} if student == "small_convnet" else {"student": plain()}
    summary = run(kd, {"teacher_epochs": 2, "teacher_model": "small_convnet"}, tmp_path, data, **given)
    assert load_checkpoint(checkpoint_path(tmp_path / "teacher"))["network"] == "small_convnet"
    options = {"teacher": str(tmp_path / "teacher"), "teacher_model": "small_convnet"}
    again = run(kd, options, tmp_path / "again", data, student=plain())
    assert again["figures"]["teacher_fingerprint"] == summary["figures"]["teacher_fingerprint"]


# Stopped and continued


@pytest.mark.parametrize("name", ["kd", "sskd", "crd"])
def test_continued_is_never_stopped(name, tmp_path):
    method, options = TAUGHT[name]
    options = {**options, "epochs": 3}

    def start(out, train, student):
        augmentation = v2.RandomHorizontalFlip()
        objects = {"student": student, "teacher": plain(seed=1), "augmentation": augmentation}
        return run(method, options, out, (train, Pairs(16)), **objects)

    train = Pairs(64)
    start(tmp_path / "whole", train, plain())
    train.stop_at, train.reads = train.reads - 90, 0  # in the second epoch of the last stage
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "parts", train, plain())
    assert 0 < epochs_written(tmp_path / "parts") < 3
    torch.manual_seed(9)  # neither the state of the generators nor the new module's first weights count
    student = plain(seed=5)
    start(tmp_path / "parts", Pairs(64), student)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert same(copied(student), weights(tmp_path / "whole"))


def test_a_finished_run_is_loaded_into_the_module(data, tmp_path):
    summary = run(kd, {}, tmp_path, data, student=plain(), teacher=plain(seed=1))
    student = plain(seed=5)
    assert run(kd, {}, tmp_path, data, student=student, teacher=plain(seed=1)) == summary
    assert same(copied(student), weights(tmp_path))


@pytest.mark.parametrize(
    ("options", "objects", "named"),
    [
        ({}, {"student": plain(seed=2), "teacher": plain(seed=2)}, "teacher sha256:"),
        ({}, {"student": nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "teacher": plain(seed=1)}, "network Seq"),
        ({}, {"augmentation": v2.RandomHorizontalFlip(0.3), "teacher": plain(seed=1)}, r"augmentation None there, Rand"),
    ],
)
def test_another_object_is_another_run(options, objects, named, data, tmp_path):
    run(kd, {"epochs": 1}, tmp_path, data, student=plain(), teacher=plain(seed=1))
    with pytest.raises(TrainerError, match=f"holds a run with other options .*{named}"):
        run(kd, {"epochs": 1}, tmp_path, data, **{"student": plain(), **objects})
    other = Pairs(64, classes=2), Pairs(32, classes=2)
    with pytest.raises(TrainerError, match="dataset Pairs 64 .* there, Pairs 64 .* here"):
        run(kd, {"epochs": 1}, tmp_path, other, student=plain(2), teacher=plain(2))


# Loaded again


def test_a_run_of_an_own_module_is_evaluated_and_teaches(data, tmp_path):
    out = tmp_path / "first"
    summary = run(kd, {"kl_weight": 0.0, "learning_rate": 0.1, "epochs": 4}, out, data, student=plain())
    accuracy = summary["figures"]["test_accuracy"]
    empty = plain(seed=5)
    figures = evaluate(kd.Args(evaluate=out), dataset=data, student=empty)
    assert figures["top1"] == accuracy and figures["top5"] == 1.0
    assert same(copied(empty), weights(out))
    taught = run(kd, {"teacher": out}, tmp_path / "second", data, student=plain(seed=2), teacher=plain(seed=3))
    assert taught["figures"]["teacher_accuracy"] == accuracy
    with pytest.raises(TrainerError, match="holds a Sequential of 3,188 weights, this run needs a small_resnet: name"):
        run(kd, {"teacher": out}, tmp_path / "third", data, student=plain())
    with pytest.raises(TrainerError, match=r"a Sequential of 3,188 weights, .*: give one like it, evaluate\(args, stu"):
        evaluate(kd.Args(evaluate=out), dataset=data)
    with pytest.raises(TrainerError, match="holds no finished run whose weights the given module could take"):
        run(kd, {"teacher": tmp_path / "nothing"}, tmp_path / "fourth", data, student=plain(), teacher=plain(seed=1))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_of_others_teach(name, data, tmp_path):
    teacher = plain()
    run(kd, {"kl_weight": 0.0, "learning_rate": 0.1, "epochs": 4}, tmp_path / "first", data, student=teacher)
    file = tmp_path / name
    save_file(teacher.state_dict(), file) if file.suffix == ".safetensors" else torch.save(teacher.state_dict(), file)
    summary = run(kd, {"teacher": file}, tmp_path / "taught", data, student=plain(), teacher=plain(seed=3))
    expected = read_summary(tmp_path / "first")["figures"]["test_accuracy"]
    assert summary["figures"]["teacher_accuracy"] == expected
    sentence = (
        r"weights .* do not fit the Named here; missing there: body.0.weight, .*unknown here: .*[0-9].weight.*; name the"
    )
    with pytest.raises(TrainerError, match=sentence):
        run(kd, {"teacher": file}, tmp_path / "other", data, student=plain(), teacher=Named())


# Loaders, augmentation, accelerator


def loaders(count=64, **options):
    images, labels = torch.randn(count, *SHAPE), torch.arange(count) % CLASSES
    return tuple(DataLoader(TensorDataset(images, labels), batch_size=24, **options) for _ in range(2))


def test_a_teacher_of_16_bits(data, tmp_path):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = plain(seed=1).bfloat16()

        def forward(self, images):
            return self.network(images.bfloat16())

    summary = run(kd, {}, tmp_path, data, student=plain(), teacher=Half())
    assert summary["configuration"]["teacher"].startswith("sha256:")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (kd, {}),
        (tf_kd, {"mode": "reg"}),
        (born_again, {"generations": 1}),
        (okddip, {"method": "dml"}),
        (sskd, {"head_epochs": 2}),
        (ka_dtd, {}),
        (crd, {"crd_weight": 0.0}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_loaders_decide_their_batches(method, options, tmp_path, capsys):
    taught = {} if method in (okddip, tf_kd) else {"teacher": plain(seed=1)}
    args = method.Args(out=tmp_path, epochs=2, **options)
    summary = method.train(args, dataset=loaders(shuffle=True), student=lambda: plain(), **taught)
    assert summary["configuration"]["batch_size"] == 24 and summary["figures"]["step"] == 6
    assert "64 images, 3 steps per epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 16}, "--batch-size 16 is of no use: the training data are a DataLoader of batches of 24; leave"),
        ({"grad_accum_steps": 2}, "--grad-accum-steps 2 is of no use: .* which makes the batches itself; leave it out"),
        ({"teacher_batch_size": 8}, "--teacher-batch-size 8 is of no use: .* makes the batches itself; leave it out"),
        ({"train_images": 20}, "--train-images 20 is of no use: images of a DataLoader have no numbers, those of the Data"),
        ({"imbalance": 10.0}, "--imbalance 10.0 is of no use: images of a DataLoader have no numbers, those of the Data"),
        ({"validation": 0.5}, "--validation 0.5 is of no use: images of a DataLoader have no numbers, those of the Data"),
        ({"noisy_labels": 0.5}, "--noisy-labels 0.5 is of no use: images of a DataLoader have no numbers, those of the Data"),
    ],
)
def test_loaders_refuse_what_they_decide(options, sentence, tmp_path):
    with pytest.raises(TrainerError, match=sentence):
        kd.train(kd.Args(out=tmp_path, **options), dataset=loaders(), student=plain(), teacher=plain(seed=1))


@pytest.mark.parametrize(
    ("method", "options", "objects", "sentence"),
    [
        (crd, {}, {}, "crd's memory banks must know each image by its number, the training data are a DataLoader"),
        (ka_dtd, {"teacher_errors": 0.1}, {}, "--teacher-errors, .* must know each image by its number, the training"),
        (kd, {}, {"augmentation": v2.RandomHorizontalFlip()}, "an augmentation, .* must know each image by its number"),
    ],
)
def test_loaders_have_no_numbers(method, options, objects, sentence, tmp_path):
    args = method.Args(out=tmp_path, **options)
    with pytest.raises(TrainerError, match=sentence):
        method.train(args, dataset=loaders(), student=plain(), teacher=plain(seed=1), **objects)


def test_last_batch_of_a_loader_is_checked(tmp_path):
    with pytest.raises(TrainerError, match="cannot take 1 image of 3x8x8 .* in training mode: Expected more than 1 value"):
        kd.train(kd.Args(out=tmp_path), dataset=loaders(count=49), student=plain(), teacher=plain(seed=1))


@pytest.fixture
def no_accelerator():
    """accelerate keeps the settings of the first accelerator of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerator_is_the_given_one(data, tmp_path, no_accelerator):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    student = plain()
    summary = run(kd, {}, tmp_path, data, student=student, teacher=plain(seed=1), accelerator=accelerator)
    configuration = summary["configuration"]
    assert (configuration["mixed_precision"], configuration["grad_accum_steps"]) == ("bf16", 2)
    assert copy.deepcopy(student)(torch.zeros(2, *SHAPE)).dtype == torch.float32 and "forward" not in vars(student)
    with pytest.raises(TrainerError, match="--log-with tensorboard is for the accelerator that a trainer starts itself"):
        run(kd, {"log_with": "tensorboard"}, tmp_path, data, student=student, accelerator=accelerator)


def test_accelerator_that_does_not_know_the_other_processes(data, tmp_path, no_accelerator, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainerError, match="the accelerator that is given knows 1 of 2 processes; on CPUs make it with"):
        run(kd, {}, tmp_path, data, student=plain(), accelerator=accelerator)


# What is refused


def frozen():
    return plain().requires_grad_(False)


class Remembering(nn.Sequential):
    """A constant as long as the largest batch so far, as position encodings keep it."""

    ones = torch.ones(0, 1)

    def forward(self, images):
        if len(self.ones) < len(images):
            self.ones = torch.ones(len(images), 1)
        return super().forward(images) * self.ones[: len(images)]


def test_what_a_network_keeps_from_a_test_serves_training(data, tmp_path):
    run(kd, {"kl_weight": 0.0}, tmp_path, data, student=Remembering(*plain()))


class Extra(nn.Sequential):
    def get_extra_state(self):
        return {}


class Empty(nn.Module):
    """Gives no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = plain()

    def forward(self, images):
        return {"logits": self.layer(images)}


ONE = plain()


@pytest.mark.parametrize(
    ("method", "options", "objects", "sentence"),
    [
        (kd, {}, {"student": "resnet20"}, "the student must be a torch.nn.Module or a function that returns one, got str"),
        (kd, {}, {"student": lambda: 3}, "the student must be a torch.nn.Module or a function that returns one, got int"),
        (kd, {}, {"student": Empty()}, r"the student .Empty. must give logits, .*, got dict with logits; wrap it in"),
        (kd, {}, {"student": plain(7)}, r"the student .* tensor \[2, 4\], .* of 4 classes .*, got float32 \[2, 7\]; give"),
        (kd, {}, {"student": Extra(*plain())}, "the student .Extra. has a state that is no tensor: _extra_state; keep"),
        (kd, {}, {"student": frozen()}, "the student .Sequential. has no weight to train: none requires a gradient"),
        (kd, {}, {"student": nn.Flatten()}, "the student .Flatten. has no weight to train: none requires a gradient"),
        (kd, {}, {"teacher": plain(7)}, r"the teacher .* tensor \[2, 4\], .* of 4 classes .*, got float32 \[2, 7\]; give"),
        (kd, {}, {"teacher": 3}, "the teacher must be a torch.nn.Module or a function that returns one, got int"),
        (kd, {}, {"student": ONE, "teacher": ONE}, "student and teacher share weights, .* give copies .copy.deepcopy."),
        (kd, {"dataset": "mnist"}, {}, "--dataset mnist is of no use: the data are given as objects; leave it out"),
        (kd, {"kl_weight": 0.0}, {"teacher": plain()}, "a teacher is given, but nobody teaches in kd under these options"),
        (okddip, {}, {"student": plain, "teacher": plain()}, "a teacher is given, but nobody teaches in okddip under"),
        (okddip, {}, {"student": lambda: ONE}, "the function must return a new Sequential of 3,188 weights each time, it"),
        (okddip, {}, {"student": plain}, "of our own networks, Sequential is .* their own .--structure network."),
        (okddip, {"structure": "network"}, {"student": narrow}, "the student has 4: give it 8 or more"),
        (sskd, {}, {"student": Named(), "teacher": plain()}, r"say where its features are: .*; there is: body, body.0"),
        (sskd, {}, {"teacher": Named(), "student": plain()}, r"say where its features are: .*; there is: body, body.0"),
        (kd, {"batch_size": 65}, {"student": plain()}, "--batch-size must be 1 to 64, the images of an epoch"),
    ],
)
def test_refused_before_anything_is_trained(method, options, objects, sentence, data, tmp_path):
    with pytest.raises(TrainerError, match=sentence) as caught:
        run(method, options, tmp_path, data, **{"student": plain(), "teacher": None, **objects})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("state.pt"))


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (TensorDataset(torch.randn(64, *SHAPE)), "item 0 of the training data must be a pair .image, label., got tuple of 1"),
        (Pairs(64, classes=3), "training and test images must be of the same classes, got 3 in the test split alone"),
        (range(4), "item 0 of the training data must be a pair .image, label., got int 0"),
    ],
)
def test_unusable_data_are_refused(train, sentence, tmp_path):
    with pytest.raises(TrainerError, match=sentence):
        run(kd, {}, tmp_path, (train, Pairs(32)), student=plain())


def test_names_of_submodules_that_do_not_exist():
    with pytest.raises(TrainerError, match="Named has no submodule 'nek'; there is: neck, body, body.0, body.1, out"):
        Tapped(Named(), features="nek")


def test_unknown_objects():
    with pytest.raises(TypeError, match="networks"):
        kd.train(kd.Args(), networks=plain())


ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_network_and_data.py"
needs_sources = pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not beside the tests")


@needs_sources
def test_lines_of_the_readme(data, tmp_path, monkeypatch):
    (lines,) = re.findall(r"```python\n([^`]*\btrain\([^`]*)```", (ROOT / "README.md").read_text())
    monkeypatch.chdir(tmp_path)
    student = plain()
    exec(lines, {"train": data[0], "test": data[1], "my_module": student, "timm_model": timms()})
    assert same(copied(student), weights(tmp_path / "out" / "mine"))


@needs_sources
def test_example(tmp_path):
    pytest.importorskip("timm")
    spec = importlib.util.spec_from_file_location("own_network_and_data", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accuracies = example.main(str(tmp_path), epochs=2)
    assert accuracies["teacher"] > 0.3 and accuracies["student"] > 0.3
