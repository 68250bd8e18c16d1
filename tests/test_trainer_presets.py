"""Every preset can be run, sets what it says, and yields to options given by themselves."""

import importlib
from dataclasses import asdict, replace

import pytest
from trainer_runs import torch_settings  # noqa: F401

from python_trainers import born_again, crd, okddip, sskd, tf_kd
from python_trainers.common.presets import published

pytestmark = pytest.mark.trainers
METHODS = ("born_again", "crd", "ka_dtd", "okddip", "sskd", "tf_kd")


def trained_with(monkeypatch, module, argv):
    """The options that a command line leads to."""
    seen = []
    monkeypatch.setattr(module, "train", seen.append)
    assert module.main(argv) == 0
    return seen[0]


@pytest.mark.parametrize("method", METHODS)
def test_presets_are_options_that_pass_the_checks(method):
    module = importlib.import_module(f"python_trainers.{method}")
    for name, preset in module.PRESETS.items():
        args = preset.applied_to(module.Args())
        module.check(args)
        assert preset.describes(args), name
        assert not set(preset.setting) & set(preset.recipe), name
        assert preset.accuracy is None or 60 < preset.accuracy < 100, name


@pytest.mark.parametrize("method", METHODS)
def test_list(method, capsys):
    module = importlib.import_module(f"python_trainers.{method}")
    assert module.main(["--list-presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(module.PRESETS)
    assert len(lines) == 3 * len(module.PRESETS)


def test_preset_sets_options_and_those_given_win(monkeypatch):
    args = trained_with(monkeypatch, tf_kd, ["--preset", "cifar100-reg-resnet18", "--epochs", "7"])
    assert (args.dataset, args.student_model, args.mode) == ("cifar100", "resnet18", "reg")
    assert (args.alpha, args.temperature, args.multiplier) == (0.1, 20.0, 100.0)
    assert args.reduction == "elementmean" and not args.nesterov
    assert (args.epochs, args.warmup_epochs, args.milestones) == (7, 1, (60, 120, 160))
    assert trained_with(monkeypatch, tf_kd, ["--epochs", "7", "--preset=cifar100-reg-resnet18"]) == args


def test_listed_options_lead_to_the_same_run(monkeypatch, capsys):
    """What --list-presets prints can be typed."""
    assert born_again.main(["--list-presets"]) == 0
    printed = capsys.readouterr().out.splitlines()
    name, options = printed[0], printed[1].split()
    typed = trained_with(monkeypatch, born_again, options)
    assert asdict(typed) == asdict(born_again.PRESETS[name].applied_to(born_again.Args()))


def test_published_figures():
    """Spot checks against the tables."""
    assert born_again.PRESETS["cifar100-densenet_112_33-ban"].accuracy == 83.05
    assert born_again.PRESETS["cifar100-densenet_80_80-generation-3"].accuracy == 84.5
    assert born_again.PRESETS["cifar100-wrn_28_10-to-densenet_90_60"].accuracy == 83.21
    assert born_again.PRESETS["cifar10-densenet_80_120"].accuracy == 96.46
    assert tf_kd.PRESETS["cifar100-re_kd-resnet50-mobilenetv2"].accuracy == 79.3
    assert tf_kd.PRESETS["cifar100-re_kd-resnet50-mobilenetv2"].recipe["batch_size"] == 64
    assert tf_kd.PRESETS["cifar100-de_kd-resnet18-shufflenetv2"].setting["teacher_epochs"] == 1
    assert crd.PRESETS["cifar100-crd-resnet32x4-resnet8x4"].accuracy == 75.51
    assert crd.PRESETS["cifar100-crd_kd-resnet110-resnet32"].accuracy == 73.75
    assert crd.PRESETS["cifar100-kd-wrn_40_2-shufflenetv1"].accuracy == 74.83
    assert crd.PRESETS["cifar100-crd-resnet32x4-shufflenetv2"].recipe["learning_rate"] == 0.01
    assert okddip.PRESETS["cifar10-okddip-branch-resnet32"].accuracy == 94.42
    assert okddip.PRESETS["cifar100-okddip-network-wrn_20_8"].accuracy == 80.37
    assert okddip.PRESETS["cifar100-dml-network-vgg16_fc"].accuracy == 74.67
    assert okddip.PRESETS["cifar100-one-branch-resnet110_bottleneck"].accuracy == 78.33
    assert "71.24 %; all four together 75.10 %" in okddip.PRESETS["cifar100-one-branch-resnet32"].source
    assert "together 76.55 %" in okddip.PRESETS["cifar100-leaderless-branch-resnet32"].source
    assert sskd.PRESETS["cifar100-code-resnet32x4-shufflenetv1"].accuracy == 78.44
    assert sskd.PRESETS["cifar100-eccv-vgg13-mobilenetv2_half"].accuracy == 71.53


def test_only_the_same_data_networks_and_variant_are_comparable():
    setting = {"dataset": "cifar100", "mode": "self", "student_model": "resnet18"}
    assert published(tf_kd.PRESETS, tf_kd.Args(**setting)).accuracy == 77.10
    for change in ({"dataset": "cifar10"}, {"student_model": "resnet50"}):
        assert published(tf_kd.PRESETS, tf_kd.Args(**{**setting, **change})) is None


def test_variants_of_one_trainer_have_their_own_figures():
    setting = {"dataset": "cifar100", "teacher_model": "vgg13", "student_model": "vgg8"}
    for variant, accuracy in (("crd", 73.94), ("crd_kd", 74.29), ("kd", 72.98)):
        args = crd.PRESETS[variant].applied_to(crd.Args(**setting))
        assert published(crd.PRESETS, args).accuracy == accuracy
    assert published(crd.PRESETS, crd.Args(**setting, crd_weight=0.5)) is None


def test_three_weights_of_one_paper(monkeypatch):
    for name, similarity, rotated in (("code", 10.0, 2.7), ("arxiv", 2.7, 10.0), ("eccv", 3.0, 5.0)):
        for preset in (name, f"cifar100-{name}-vgg13-vgg8"):
            args = trained_with(monkeypatch, sskd, ["--preset", preset])
            assert (args.ce_weight, args.kl_weight) == (0.1, 0.9)
            assert (args.similarity_weight, args.rotated_weight) == (similarity, rotated)
    assert trained_with(monkeypatch, sskd, ["--preset", "code"]) == sskd.Args()


def test_online_students_of_four_kinds(monkeypatch):
    """Each method with the structure and the ramp of its column."""
    for preset, method, structure, ramp in (
        ("cifar10-okddip-network-vgg16_fc", "okddip", "network", 80),
        ("cifar100-one-branch-resnet32", "one", "branch", 80),
        ("cifar100-dml-network-densenet_40_12", "dml", "network", 0),
        ("cifar100-independent-branch-wrn_20_8", "independent", "branch", 80),
    ):
        args = trained_with(monkeypatch, okddip, ["--preset", preset])
        assert (args.method, args.structure, args.rampup_epochs) == (method, structure, ramp)
        assert (args.students, args.milestones, args.batch_size) == (4, (150, 225), 128)
    leaderless = trained_with(monkeypatch, okddip, ["--preset", "cifar100-leaderless-branch-resnet32"])
    assert not leaderless.leader
    assert published(okddip.PRESETS, leaderless) is None
    assert published(okddip.PRESETS, replace(leaderless, leader=True)).accuracy == 74.37
