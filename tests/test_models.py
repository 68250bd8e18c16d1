"""The networks: parameter counts of the papers, one form inside, and the sentences for what can go wrong."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision", reason="the trainers need `pip install kdkernels[trainers]`")

from python_trainers.common.errors import TrainerError
from python_trainers.common.models import (
    NETWORKS,
    Network,
    __main__ as table,
    build_network,
    require_network,
    small,
)
from python_trainers.common.models.torchvision_networks import torchvision_network

pytestmark = pytest.mark.trainers
CIFAR = (3, 32, 32)
CRD = "Tian et al. 2020, official code"
OKDDIP = "Chen et al. 2020"
WRN = "Zagoruyko, Komodakis 2016, table 4"
DENSENET = "Huang et al. 2017, table 2"
TFKD = "Yuan et al. 2020"
BAN = "Furlanello et al. 2018, table 1"

# Weights as published, in millions to the digits given.
PUBLISHED = [
    ("resnet32", 100, "0.473", OKDDIP),
    ("resnet110_bottleneck", 100, "1.171", OKDDIP),
    ("wrn_20_8", 100, "6.871", OKDDIP),
    ("vgg16_fc", 100, "15.30", OKDDIP),
    ("densenet_40_12", 100, "0.188", OKDDIP),
    ("vgg8", 100, "3.965", CRD),
    ("vgg13", 100, "9.462", CRD),
    ("mobilenetv2_half", 100, "0.813", CRD),
    ("shufflenetv2", 100, "1.356", CRD),
    ("resnet50", 100, "23.7", CRD),
    ("wrn_40_1", 10, "0.6", WRN),
    ("wrn_40_4", 10, "8.9", WRN),
    ("wrn_16_8", 10, "11.0", WRN),
    ("wrn_22_8", 10, "17.2", WRN),
    ("wrn_28_10", 10, "36.5", WRN),
    ("wrn_28_12", 10, "52.5", WRN),
    ("wrn_28_1", 100, "0.38", BAN),
    ("wrn_28_2", 100, "1.48", BAN),
    ("wrn_28_5", 100, "9.16", BAN),
    ("densenet_106_33", 10, "6.3", BAN),  # there also called 112-33
    ("densenet_100_12", 10, "0.8", DENSENET),
    ("densenet_250_24", 10, "15.3", DENSENET),
    ("tfkd_mobilenetv2", 100, "2.37", TFKD),
]

# To the weight, 100 classes: what the networks of CRD's code and the usual CIFAR ResNets count.
EXACT = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2_half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "tfkd_mobilenetv2": 2_369_380,
    "tfkd_shufflenetv2": 1_360_896,
    "wrn_16_2_drop30": 703_284,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
}

# Too large to compute with here; each has a smaller sibling that is made by the same code.
LARGE = {
    "resnet110",
    "resnet34",
    "wrn_28_10",
    "densenet_112_33",
    "densenet_90_60",
    "densenet_80_80",
    "densenet_80_120",
}
COMPUTED = [name for name in NETWORKS if name not in LARGE]
ONE_OF_EACH = ["wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "densenet_40_12"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@cache
def shapes_only(name: str, classes: int) -> Network:
    with torch.device("meta"):
        return build_network(name, table.image_shape(name), classes)


def count(*modules: torch.nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


@pytest.mark.parametrize(("name", "classes", "millions", "source"), PUBLISHED)
def test_published_parameters(name, classes, millions, source):
    decimals = len(millions.partition(".")[2])
    assert f"{count(shapes_only(name, classes)) / 1e6:.{decimals}f}" == millions, source


@pytest.mark.parametrize(("name", "weights"), EXACT.items())
def test_exact_parameters(name, weights):
    assert count(shapes_only(name, 100)) == weights


@pytest.mark.parametrize(
    ("name", "millions"),
    [("densenet_90_60", 16.1), ("densenet_80_80", 22.4), ("densenet_80_120", 50.4)],
)
def test_born_again_densenets_come_near(name, millions):
    """No reading of Furlanello et al. 2018, table 1, gives all of its counts: docs/models.md."""
    assert count(shapes_only(name, 10)) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("name", COMPUTED)
def test_logits_and_gradients(name):
    """Maps, features and logits are of one forward, their sizes as promised; every weight gets a gradient."""
    network = build_network(name, CIFAR, 5)
    images = torch.randn(2, *CIFAR)
    network(images).logsumexp(1).sum().backward()
    assert not [key for key, weight in network.named_parameters() if weight.grad is None]

    network.eval().requires_grad_(False)
    maps = network.stages(images)
    assert tuple(m.shape[1] for m in maps) == network.stage_channels
    assert all(m.ndim == 4 and len(m) == 2 for m in maps)
    x = network.stem(images)
    for stage, map_ in zip(network.stage_modules, maps, strict=True):
        x = stage(x)
        assert torch.equal(x, map_)  # also: no later stage wrote into it
    features = network.forward_features(images)
    assert features.shape == (2, network.num_features)
    assert torch.equal(features, network.pool(maps[-1]))
    logits = network(images)
    assert torch.equal(logits, network.head(features))
    assert logits.shape == (2, 5) and logits.isfinite().all()
    assert logits.var() > 0


@pytest.mark.parametrize("name", [*small.NETWORKS, "resnet8x4", "resnet18", *ONE_OF_EACH])
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 28, 28)])
def test_grey_images(name, image_shape):
    network = build_network(name, image_shape, 10).eval()
    with torch.no_grad():
        assert network(torch.randn(2, *image_shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "size", "last"), [("vgg8", 32, 4), ("vgg8", 64, 4), ("vgg16_fc", 32, 2), ("vgg16_fc", 64, 4)]
)
def test_the_last_group_of_vgg(name, size, last):
    """CRD's has four halvings from 64 pixels on, three below; OKDDip's always four before its maximum."""
    with torch.device("meta"):
        maps = build_network(name, (3, size, size), 10).stages(torch.empty(1, 3, size, size))
    assert maps[-1].shape[2:] == (last, last)


@pytest.mark.parametrize("name", ["small_convnet", "resnet20", "shufflenetv2"])
def test_the_seed_decides_the_weights(name):
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(build_network(name, CIFAR, 10).parameters())

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_checking_the_shape_leaves_generator_weights_and_statistics_alone():
    checked = build_network("torchvision:mobilenet_v3_small", CIFAR, 10)
    after = torch.rand(1)
    torch.manual_seed(0)
    unchecked = torchvision_network("mobilenet_v3_small")(CIFAR, 10)
    assert torch.equal(after, torch.rand(1))
    assert all(map(torch.equal, checked.state_dict().values(), unchecked.state_dict().values()))
    statistics = {key: value for key, value in checked.state_dict().items() if key.endswith("running_mean")}
    assert statistics and not any(value.any() for value in statistics.values())


@pytest.mark.parametrize(
    ("name", "weights", "sum_of_sizes"),
    [
        ("small_resnet", 151_146, 4011.962901979547),
        ("small_convnet", 1_898, 124.52308340921809),
        ("small_mlp", 2_410, 158.85595322796144),
    ],
)
def test_the_demo_starts_from_the_weights_it_always_did(name, weights, sum_of_sizes):
    """The figures in README.md depend on them."""
    network = build_network(name, (1, 8, 8), 10)
    assert count(network) == weights
    sizes = [weight.double().abs().sum().item() for weight in network.parameters()]
    assert sum(sizes) == pytest.approx(sum_of_sizes, rel=1e-9)


def test_kaiming_initialisation():
    network = build_network("wrn_16_2", CIFAR, 10)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


def test_trunk_and_branch_make_the_network():
    network = build_network("resnet20", CIFAR, 10).eval()
    trunk = torch.nn.Sequential(network.stem, *network.stage_modules[:-1])
    branch = torch.nn.Sequential(network.stage_modules[-1], network.pool, network.head)
    images = torch.randn(2, *CIFAR)
    assert torch.equal(branch(trunk(images)), network(images))


# How many resolutions each goes through at 224 pixels.
SMALL_OF_TORCHVISION = {"resnet18": 5, "mobilenet_v3_small": 5, "shufflenet_v2_x0_5": 5, "densenet121": 5}
OTHERS_OF_TORCHVISION = {
    "alexnet": 4,
    "convnext_tiny": 4,
    "efficientnet_b0": 5,
    "googlenet": 5,
    "inception_v3": 5,
    "maxvit_t": 5,
    "mnasnet0_5": 5,
    "mobilenet_v2": 5,
    "regnet_y_400mf": 5,
    "resnext50_32x4d": 5,
    "vgg11_bn": 6,
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        *SMALL_OF_TORCHVISION.items(),
        *(pytest.param(*item, marks=pytest.mark.long) for item in OTHERS_OF_TORCHVISION.items()),
    ],
)
def test_torchvision_network_is_torchvisions(name, stages):
    """The same weights in the same order, the same logits, and maps before the pooling."""
    from torchvision.models import get_model

    size = {"maxvit_t": 224, "inception_v3": 96}.get(name, 64)
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    original = get_model(name, weights=None, num_classes=7, **options).eval().requires_grad_(False)
    torch.manual_seed(0)
    network = build_network(f"torchvision:{name}", (3, size, size), 7).eval().requires_grad_(False)
    assert count(network) == count(original)
    images = torch.randn(2, 3, size, size)
    assert torch.equal(network(images), original(images))
    maps = network.stages(images)
    assert len(maps) == stages
    assert tuple(m.shape[1] for m in maps) == network.stage_channels
    heights = [m.shape[2] for m in maps]
    assert heights == sorted(set(heights), reverse=True)
    assert network.forward_features(images).shape == (2, network.num_features)


def test_torchvision_network_takes_grey_images():
    network = build_network("torchvision:resnet18", (1, 28, 28), 10).eval()
    coloured = build_network("torchvision:resnet18", (3, 28, 28), 10).eval()
    coloured.load_state_dict(network.state_dict())
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(network(images), coloured(images.repeat(1, 3, 1, 1)))


def test_the_forms_of_tfkds_code():
    """No ReLU in the stem of the one, a padded 1x1 stem and ReLU6 in the other; biases everywhere."""
    images = torch.randn(2, *CIFAR)
    shuffle, mobile = build_network("tfkd_shufflenetv2", CIFAR, 10), build_network("tfkd_mobilenetv2", CIFAR, 10)
    assert (shuffle.stem(images) < 0).any()
    assert mobile.stem(images).shape == (2, 32, 34, 34)
    assert mobile.stem.eval()(100 * images).max() == 6
    for network in (shuffle, mobile):
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert all(convolution.bias is not None for convolution in convolutions)


def test_dropout_of_a_wide_resnet():
    """Between the convolutions, in training alone; the weights are those of the network without."""
    network = build_network("wrn_16_2_drop30", CIFAR, 10)
    torch.manual_seed(0)
    plain = build_network("wrn_16_2", CIFAR, 10)
    plain.load_state_dict(network.state_dict())
    images = torch.randn(4, *CIFAR)
    assert not torch.equal(network(images), network(images))
    assert torch.equal(plain(images), plain(images))
    shares = []
    block = network.stage_modules[0][0]
    block.conv2.register_forward_pre_hook(lambda _, inputs: shares.append((inputs[0] == 0).float().mean().item()))
    network(images)
    network.eval()
    network(images)
    kept = [1 - share for share in shares]
    assert kept[0] / kept[1] == pytest.approx(0.7, abs=0.05)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(images), plain.eval()(images))


@pytest.mark.parametrize("name", ["squeezenet1_1", "swin_t", "vit_b_32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_networks_of_another_form(name, channels):
    network = build_network(f"torchvision:{name}", (channels, 32, 32), 7).eval()
    images = torch.randn(2, channels, 32, 32)
    features, logits = network.with_features(images)
    assert features.shape == (2, network.num_features) and logits.shape == (2, network.classes) == (2, 7)
    assert torch.equal(logits, network(images))
    assert torch.equal(logits, network(images.expand(-1, 3, -1, -1))) or channels == 3


@pytest.mark.parametrize(
    ("name", "features", "stages"),
    [
        ("resnet18", 512, 5),
        ("mobilenetv3_small_100", 1024, 5),
        ("convnext_atto", 320, 4),
        ("vit_tiny_patch16_224", 192, 12),
        ("efficientnet_b0", 1280, 5),
        ("dla46_c", 256, 6),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_timm(name, features, stages, channels):
    timm = pytest.importorskip("timm")
    network = build_network(f"timm:{name}", (channels, 32, 32), 7).eval()
    images = torch.randn(2, channels, 32, 32)
    read, logits = network.with_features(images)
    assert read.shape == (2, features) and network.num_features == features
    assert torch.equal(logits, network(images)) and logits.shape == (2, 7)
    maps = network.stages(images)
    assert len(maps) == stages and all(map_.ndim == 4 for map_ in maps)

    size = {"img_size": 32} if name.startswith("vit") else {}
    torch.manual_seed(0)
    original = timm.create_model(name, in_chans=channels, num_classes=7, **size).eval()
    torch.manual_seed(0)
    assert torch.equal(build_network(f"timm:{name}", (channels, 32, 32), 7).eval()(images), original(images))


def test_unknown_names_of_timm_and_a_machine_without_it(monkeypatch):
    pytest.importorskip("timm")
    with pytest.raises(TrainerError, match=r"'timm:resnet-19'; of timm there is: resnet\w+, .* and \d+ more$"):
        require_network("timm:resnet-19")
    with pytest.raises(TrainerError, match="'timm:vit_tiny_patch16_224' cannot take images of 3x8x8"):
        build_network("timm:vit_tiny_patch16_224", (3, 8, 8), 10)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TrainerError, match="'timm:resnet18' needs the package timm: pip install timm"):
        require_network("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet55", "unknown network 'resnet55'; there is: resnet56, "),
        ("WRN-40-2", "unknown network 'WRN-40-2'; there is: wrn_40_2, "),
        ("lenet", "wrn_DEPTH_WIDTH_dropPERCENT, densenet_DEPTH_GROWTH, torchvision:NAME, timm:NAME"),
        ("wrn_17_2", "wrn_17_2: the depth must be 6 n + 4 (10, 16, 22, 28, 34, 40, ...), got 17"),
        ("wrn_28_10_drop100", "wrn_28_10_drop100: dropout must be less than 100 percent, got 100"),
        ("wrn_16_0", "wrn_16_0: the width must be >= 1, got 0"),
        ("densenet_41_12", "densenet_41_12: the depth must be even and >= 10, got 41"),
        ("densenet_40_0", "densenet_40_0: the growth must be >= 1, got 0"),
        (
            "torchvision:resnet19",
            "unknown network 'torchvision:resnet19'; of torchvision there is: resnet18, ",
        ),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown network 'torchvision:fasterrcnn_resnet50_fpn'; of "),
    ],
)
def test_unknown_name(name, sentence):
    with pytest.raises(TrainerError) as error:
        require_network(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "image_shape", "classes", "sentence"),
    [
        (
            "vgg16_fc",
            (3, 8, 8),
            10,
            "network 'vgg16_fc' cannot take images of 3x8x8 (channels x height x width): ",
        ),
        ("densenet_40_12", (3, 2, 2), 10, "network 'densenet_40_12' cannot take images of 3x2x2"),
        ("torchvision:inception_v3", CIFAR, 10, "'torchvision:inception_v3' cannot take images of 3x32x32"),
        ("torchvision:vit_b_16", (3, 40, 40), 10, "'torchvision:vit_b_16' cannot take images of 3x40x40"),
        ("resnet20", (32, 32), 10, "a shape of (channels, height, width), each >= 1, got 32x32"),
        ("resnet20", (3, 0, 32), 10, "a shape of (channels, height, width), each >= 1, got 3x0x32"),
        ("resnet20", CIFAR, 0, "classes must be >= 1, got 0"),
    ],
)
def test_wrong_shape(name, image_shape, classes, sentence):
    with pytest.raises(TrainerError) as error:
        build_network(name, image_shape, classes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_documented_table_is_what_the_command_prints():
    documented = (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8").splitlines()
    printed = [table.row(name, shapes_only(name, 100)) for name in NETWORKS]
    assert [line for line in documented if line in printed] == printed
