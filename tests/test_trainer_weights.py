"""Weights in files: of any origin read or refused, ours read by timm's and torchvision's own code."""

import pytest
import torch
from torch import nn

for package in ("accelerate", "torchvision"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from python_trainers.common.checkpoint import save_checkpoint
from python_trainers.common.errors import TrainerError
from python_trainers.common.models import build_network
from python_trainers.common.models.tapped import Tapped
from python_trainers.common.models.weights import export_weights, load_weights, read_weights

pytestmark = pytest.mark.trainers
SHAPE = (3, 32, 32)


def small(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, classes))


def assert_same(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in state.items())


def prefixed(weights, *prefixes):
    return {"".join(prefixes) + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    "written",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "best_acc1": torch.tensor(0.5), "arch": "small"},
        lambda w: {"model": w, "optimizer": {"state": {}, "param_groups": []}},
        lambda w: {"model_state": prefixed(w, "module.")},
        lambda w: prefixed(w, "_orig_mod.", "module."),
    ],
)
def test_state_dicts_of_others(written, tmp_path):
    torch.save(written(small().state_dict()), tmp_path / "weights.pth")
    assert_same(small(), read_weights(tmp_path / "weights.pth"))
    for module in (small(1), Tapped(small(1)), nn.DataParallel(small(1))):
        load_weights(module, tmp_path / "weights.pth")
        assert_same(getattr(module, "module", module), small().state_dict())


def test_safetensors_and_checkpoints_of_runs(tmp_path):
    save_file(small().state_dict(), tmp_path / "weights.safetensors")
    state = {"tracked": {"model": Tapped(small()).state_dict(), "optimizer": {}}, "history": []}
    save_checkpoint(tmp_path / "run" / "checkpoint" / "state.pt", state)
    for path in ("weights.safetensors", "run", "run/checkpoint/state.pt"):
        assert_same(small(), read_weights(tmp_path / path))


class Runs:
    """Code in a pickle."""

    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


@pytest.mark.parametrize(
    ("name", "write", "sentence"),
    [
        ("absent.pt", lambda path: None, "absent.pt do not exist"),
        ("text.pt", lambda path: path.write_text("weights"), "text.pt cannot be read as tensors alone ("),
        ("code.pt", lambda path: torch.save(Runs(), path), "code.pt cannot be read as tensors alone ("),
        ("module.pt", lambda path: torch.save(small(), path), "save module.state_dict()"),
        ("half.safetensors", lambda path: path.write_bytes(b"\x08"), "cannot be read as safetensors ("),
        ("list.pt", lambda path: torch.save([torch.ones(1)], path), "hold no state dict (names and tensors), "),
        ("epoch.pt", lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "found: epoch, lr"),
        ("empty.pt", lambda path: torch.save({"state_dict": {}}, path), "found: state_dict"),
    ],
)
def test_no_weights(name, write, sentence, tmp_path):
    write(tmp_path / name)
    with pytest.raises(TrainerError) as error:
        read_weights(tmp_path / name)
    assert sentence in str(error.value) and str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            lambda w: {f"net.{name}": value for name, value in w.items()},
            "missing there: 0.weight, 0.bias, 1.weight and 6 more; unknown here: net.0.weight, net.0.bias, ",
        ),
        (lambda w: {**w, "extra": torch.ones(1)}, "do not fit the Sequential here; unknown here: extra; name the"),
        (
            lambda w: {**w, "3.bias": torch.ones(10)},
            "of another shape: 3.bias [10] there, [3] here; name the network",
        ),
    ],
)
def test_weights_that_do_not_fit(wrong, sentence, tmp_path):
    torch.save(wrong(small(1).state_dict()), tmp_path / "weights.pt")
    for module in (small(), Tapped(small())):
        with pytest.raises(TrainerError) as error:
            load_weights(module, tmp_path / "weights.pt")
        assert sentence in str(error.value)
        assert_same(getattr(module, "module", module), small().state_dict())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "squeezenet1_1"])
def test_torchvision_reads_what_is_exported_and_the_other_way_round(name, tmp_path):
    from torchvision.models import get_model

    images = torch.randn(2, 3, 64, 64)
    network = build_network(f"torchvision:{name}", (3, 64, 64), 7).eval()
    for value in network.buffers():  # so that no two are equal by chance
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    path = tmp_path / "student.safetensors"
    export_weights(network, path, name=f"torchvision:{name}", image_shape=(3, 64, 64), classes=7)
    original = get_model(name, weights=None, num_classes=7).eval()
    original.load_state_dict(load_file(path), strict=True)
    assert torch.equal(original(images), network(images))

    torch.save(original.state_dict(), tmp_path / "original.pth")
    torch.save(network.state_dict(), tmp_path / "ours.pth")  # as a checkpoint of a run has them
    for file in ("student.safetensors", "original.pth", "ours.pth"):
        other = build_network(f"torchvision:{name}", (3, 64, 64), 7).eval()
        load_weights(other, tmp_path / file)
        assert torch.equal(other(images), network(images))


def test_timm_reads_what_is_exported(tmp_path):
    timm = pytest.importorskip("timm")
    images = torch.randn(2, 1, 32, 32)
    network = build_network("timm:test_resnet", (1, 32, 32), 7).eval()
    path = tmp_path / "student.safetensors"
    export_weights(network, path, name="timm:test_resnet", image_shape=(1, 32, 32), classes=7)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "network": "timm:test_resnet",
            "architecture": "test_resnet",
            "image_shape": "1x32x32",
            "classes": "7",
        }
    original = timm.create_model("test_resnet", in_chans=1, num_classes=7, checkpoint_path=str(path)).eval()
    assert torch.equal(original(images), network(images))
    other = build_network("timm:test_resnet", (1, 32, 32), 7).eval()
    load_weights(other, path)
    assert torch.equal(other(images), network(images))


def test_export_of_a_network_of_ours(tmp_path):
    network = build_network("small_convnet", (1, 8, 8), 10)
    tied = nn.ModuleList([network, network])
    export_weights(tied, tmp_path / "tied.safetensors", name="pair", image_shape=(1, 8, 8), classes=10)
    export_weights(network, tmp_path / "w.safetensors", name="small_convnet", image_shape=(1, 8, 8), classes=10)
    assert_same(tied, load_file(tmp_path / "tied.safetensors"))
    assert_same(network, read_weights(tmp_path / "w.safetensors"))
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata()["architecture"] == file.metadata()["network"] == "small_convnet"
    assert {path.name for path in tmp_path.iterdir()} == {"tied.safetensors", "w.safetensors"}
