"""What practitioners expect beside the recipe: testing, exporting, trackers, the use of the machine; what is refused."""

import json
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from trainer_runs import assert_same_run, torch_settings, weights  # noqa: F401

from python_trainers import kd
from python_trainers.common.data import load_dataset
from python_trainers.common.errors import TrainerError
from python_trainers.common.models import build_network
from python_trainers.common.resolve import bare

pytestmark = pytest.mark.trainers
FEW = {"kl_weight": 0.0, "train_images": 50, "epoch_of": "images", "batch_size": 25}  # two steps an epoch
LONGER = {"epochs": 10, "learning_rate": 0.1, "student_model": "small_mlp"}


def few(out, **options):
    return kd.Args(**{**FEW, "epochs": 1, "out": out, **options})


def command(*options):
    given = {f"--{name.replace('_', '-')}": str(value) for name, value in {**FEW, "epochs": 1}.items()}
    return [text for pair in given.items() for text in pair] + list(options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ten epochs that exported its weights."""
    out = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    kd.train(few(out, **LONGER, export=out / "student.safetensors"))
    return out


@pytest.mark.parametrize("file", ["", "checkpoint/state.pt", "student.safetensors"])
def test_evaluate(file, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    own = ["--student-model", "small_mlp"] if file.endswith(".safetensors") else []  # a run says itself what it holds
    assert kd.main(["--evaluate", str(run / file), *own, "--eval-batch-size", "100"]) == 0
    dataset = load_dataset("digits", None)
    network = build_network("small_mlp", dataset.image_shape, dataset.classes).eval()
    network.load_state_dict(weights(run))
    with torch.no_grad():
        logits = network(dataset.test.standardise(dataset.test.pixels))
    rank = (logits > logits.gather(1, dataset.test.labels[:, None])).sum(1)
    first, fifth = (100 * (rank < k).double().mean().item() for k in (1, 5))
    assert f"on 797 test images of digits: top1 {first:.2f} %, top5 {fifth:.2f} %" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["figures"]["test_accuracy"] == pytest.approx(first / 100)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}  # nothing is trained or written


def test_train_is_no_evaluation(run):
    with pytest.raises(TrainerError, match="--evaluate .* trains nothing: call common.evaluation.evaluate"):
        kd.train(kd.Args(evaluate=run))


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:shufflenet_v2_x0_5"])
def test_libraries_read_what_a_run_exports(name, tmp_path):
    library, _, architecture = name.partition(":")
    package = pytest.importorskip(library)
    file = tmp_path / "elsewhere" / "student.safetensors"
    args = few(tmp_path, train_images=None, batch_size=10, student_model=name, export=file)
    kd.train(args, dataset=pictures())
    student = build_network(name, (3, 32, 32), 10)
    bare(student).load_state_dict(weights(tmp_path))
    make = package.create_model if library == "timm" else package.models.get_model
    original = make(architecture, num_classes=10)
    original.load_state_dict(load_file(file), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(original.eval()(images), student.eval()(images))


def test_finished_run_is_exported_too(run, tmp_path):
    again = tmp_path / "again.safetensors"
    kd.train(few(run, **LONGER, export=again))
    assert {name: weight.tolist() for name, weight in load_file(again).items()} == {
        name: weight.tolist() for name, weight in load_file(run / "student.safetensors").items()
    }


def test_tensorboard_gets_every_epoch(tmp_path):
    pytest.importorskip("tensorboardX")
    kd.train(few(tmp_path, epochs=2, log_with="tensorboard"))
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents.*"))
    assert events.count(b"test_accuracy") == 2


class Notes(GeneralTracker):
    """A tracker of the user's own."""

    name, requires_logging_directory = "notes", False

    def __init__(self):
        super().__init__()
        self.configuration, self.entries, self.ends = None, [], 0

    tracker = property(lambda self: self.entries)

    def store_init_configuration(self, values):
        self.configuration = values

    def log(self, values, step, **options):
        self.entries.append((step, values))

    def finish(self):
        self.ends += 1


def test_tracker_of_ones_own(tmp_path):
    notes = Notes()
    kd.train(few(tmp_path, epochs=2, learning_rate=0.02), accelerator=Accelerator(log_with=notes))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"epoch": step, **values} for step, values in notes.entries] == lines
    assert notes.configuration["learning_rate"] == 0.02 and notes.ends == 1


def test_tracker_hears_of_a_run_that_fails(tmp_path):
    notes = Notes()
    with pytest.raises(TrainerError, match="lower --learning-rate"):
        kd.train(few(tmp_path, epochs=2, learning_rate=1e20), accelerator=Accelerator(log_with=notes))
    assert notes.ends == 1


class Noisy(Dataset):
    """Images whose transform is random."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return torch.randn(1, 8, 8), number % 10


def test_workers_change_nothing(tmp_path):
    for workers in (0, 2):
        args = few(tmp_path / str(workers), train_images=None, batch_size=20, epochs=2, workers=workers)
        kd.train(args, dataset=(Noisy(), Noisy()))
    assert_same_run(tmp_path / "0", tmp_path / "2")


def test_evaluation_batch_changes_no_figure(run, tmp_path):
    kd.train(few(tmp_path, **LONGER, eval_batch_size=7))
    assert_same_run(tmp_path, run)


def test_channels_last_changes_rounding_alone(tmp_path):
    seen = []
    make = lambda: Looking(build_network("small_convnet", (3, 32, 32), 10), seen)  # noqa: E731
    for channels_last in (False, True):
        args = few(tmp_path / str(channels_last), train_images=None, batch_size=15, channels_last=channels_last)
        kd.train(args, dataset=pictures(), student=make)
    for name, weight in weights(tmp_path / "False").items():
        torch.testing.assert_close(weights(tmp_path / "True")[name], weight, rtol=1e-4, atol=1e-5)
    assert {False, True} == set(seen)


class Looking(nn.Module):
    """Notes whether its training images and weights are channels-last."""

    def __init__(self, network, seen):
        super().__init__()
        self.network, self.seen = network, seen

    def forward(self, images):
        if self.training and images.requires_grad is False and torch.is_grad_enabled():
            tensors = [images, *(weight for weight in self.parameters() if weight.ndim == 4 and weight.shape[1] > 1)]
            last = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors]
            assert len(set(last)) == 1
            self.seen.append(last[0])
        return self.network(images)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_kernels(deterministic, tmp_path):
    kd.train(few(tmp_path, deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() == deterministic


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore")
def test_compiled_network(backend, run, tmp_path, monkeypatch):
    compiled = []
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), compile_module(self, backend=backend)))
    kd.train(few(tmp_path, **LONGER, compile=True))
    assert len(compiled) == 1
    for name, weight in weights(run).items():
        torch.testing.assert_close(weights(tmp_path)[name], weight, rtol=1e-3, atol=1e-4)


BAD = {
    "long name": (["--out", "{}/" + "a" * 256], "cannot write in .*: File name too long; give another --out"),
    "no folder": (["--out", "/dev/null/out"], "cannot write in /dev/null/out: Not a directory; give another --out"),
    "export": (["--out", "{}", "--export", "/dev/null/a.safetensors"], "cannot write in /dev/null: .*another --export"),
    "evaluate and export": (
        ["--evaluate", "{}", "--export", "a.safetensors"],
        "--evaluate only tests: to export a finished run, repeat its own command with --export",
    ),
    "teacher in a file": (
        ["--out", "{}", "--kl-weight", "1", "--teacher", "/dev/null"],
        "cannot write in /dev/null: File exists; give another --teacher",
    ),
    "export as pt": (["--out", "{}", "--export", "a.pt"], "--export must be a .safetensors file, got a.pt"),
    "seed": (["--out", "{}", "--seed", "4294967296"], "--seed must be 0 to 4294967295, got 4294967296"),
    "batch of one": (
        ["--out", "{}", "--student-model", "mobilenetv2", "--batch-size", "1"],
        "mobilenetv2 .*cannot take 1 image of 1x8x8 .* in training mode: .*; take a larger --batch-size",
    ),
    "workers": (["--out", "{}", "--workers", "-1"], "--workers must be >= 0, got -1"),
    "evaluation batch": (["--out", "{}", "--eval-batch-size", "0"], "--eval-batch-size must be >= 1, got 0"),
    "validation": (["--out", "{}", "--validation", "1"], "--validation"),
    "tracker": (["--out", "{}", "--log-with", "paper"], "unknown --log-with 'paper'; there is: .*tensorboard"),
    "evaluate": (["--evaluate", "{}/nothing"], "checkpoint .*nothing does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_before_anything_is_trained(case, tmp_path, capsys):
    options, sentence = BAD[case]
    assert kd.main(command(*(option.replace("{}", str(tmp_path)) for option in options))) == 1
    output = capsys.readouterr()
    assert re.match(f"kd: .*{sentence}", output.err) and output.err.count("\n") == 1
    assert output.out == "" and not list(tmp_path.rglob("*.*"))


def test_export_to_a_folder(tmp_path, capsys):
    folder = tmp_path / "a.safetensors"
    folder.mkdir()
    assert kd.main(command("--out", str(tmp_path / "out"), "--export", str(folder))) == 1
    assert capsys.readouterr().err == f"kd: --export {folder} is a folder: name a file in it\n"


def test_tracker_that_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("python_trainers.common.trackers.get_available_trackers", lambda: [])
    assert kd.main(command("--log-with", "wandb", "--out", str(tmp_path))) == 1
    assert capsys.readouterr().err == (
        "kd: --log-with wandb needs the package wandb, which is not installed: pip install wandb\n"
    )


def test_tracker_beside_an_accelerator(tmp_path):
    with pytest.raises(TrainerError, match="give this one the tracker: Accelerator"):
        kd.train(few(tmp_path, log_with="tensorboard"), accelerator=Accelerator())


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_ways_to_train_that_are_not_there(way, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    assert kd.main(command("--out", str(tmp_path))) == 1
    assert "kd: these trainers do not train with" in capsys.readouterr().err


def test_accelerator_of_another_way(tmp_path, monkeypatch):
    accelerator = Accelerator()
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(TrainerError, match="these trainers have data parallelism alone, the accelerator is of FSDP"):
        kd.train(few(tmp_path), accelerator=accelerator)


def pictures():
    """Training and test data: coloured noise in ten classes."""
    pixels = torch.randint(256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = [(image, number % 10) for number, image in enumerate(pixels)]
    return data, data
