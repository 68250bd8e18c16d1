"""Every preset can be run, sets what the papers print, yields to options given by themselves; and a published figure
stands beside a run of its setting alone."""

import importlib
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from trainer_runs import ROOT, torch_settings  # noqa: F401

from python_trainers import born_again, crd, kd, okddip, sskd, tf_kd
from python_trainers.common.presets import published

pytestmark = pytest.mark.trainers
METHODS = ("born_again", "crd", "ka_dtd", "kd", "okddip", "sskd", "tf_kd")


def presets_of(method):
    return importlib.import_module(f"python_trainers.{method}").PRESETS


def trained_with(monkeypatch, module, argv):
    """The options that a command line leads to."""
    seen = []
    monkeypatch.setattr(module, "train", seen.append)
    assert module.main(argv) == 0
    return seen[0]


def run_of(module, name):
    """The options of a run with this preset and no other option."""
    return module.PRESETS[name].applied_to(module.Args())


@pytest.mark.parametrize("method", METHODS)
def test_presets_are_options_that_pass_the_checks(method):
    module = importlib.import_module(f"python_trainers.{method}")
    for name, preset in module.PRESETS.items():
        args = run_of(module, name)
        type(args).check(args)
        assert preset.is_of(args), name


def settings(method):
    """A line per preset that sets a recipe, as in published_settings.txt."""
    for name, preset in presets_of(method).items():
        options = preset.options
        if "epochs" not in options:
            continue
        own, teacher = "{learning_rate:g}/{batch_size}/{epochs}".format(**options), "-"
        if "teacher_model" in options and options.get("mode") != "re_kd":
            rate, epochs = options["teacher_learning_rate"], options["teacher_epochs"]
            teacher = f"{rate:g}/{options.get('teacher_batch_size', options['batch_size'])}/{epochs}"
        yield " ".join([method, name, own, teacher, preset.quantity, str(preset.accuracy)])


def test_recipes_and_figures_are_those_of_the_papers():
    lines = (ROOT / "tests" / "published_settings.txt").read_text().splitlines()
    printed = [" ".join(line.split()) for line in lines if not line.startswith("#")]
    assert sorted(line for method in METHODS for line in settings(method)) == sorted(printed)


@pytest.mark.parametrize("method", METHODS)
def test_list(method, capsys):
    module = importlib.import_module(f"python_trainers.{method}")
    assert module.main(["--list-presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(module.PRESETS)
    assert len(lines) == 3 * len(module.PRESETS)


def test_list_names_the_quantity(capsys):
    assert okddip.main(["--list-presets"]) == 0
    printed = capsys.readouterr().out
    assert "\n    mean_accuracy 73.50 % published; Chen et al. 2020, table 2, mean of four" in printed
    assert "\n    ensemble_accuracy 76.55 % published; Chen et al. 2020, table 4" in printed


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
    assert asdict(typed) == asdict(run_of(born_again, name))


def test_teachers_of_mobile_networks_have_the_usual_rate():
    for module in (kd, crd, sskd):
        for name in module.PRESETS:
            args = run_of(module, name)
            if args.student_model in ("mobilenetv2_half", "shufflenetv1", "shufflenetv2") and "labels" not in name:
                plan = args.pretraining()
                assert (args.learning_rate, args.recipe_of(plan).learning_rate) == (0.01, 0.05), name


def test_networks_are_those_of_the_papers_code():
    """Where more than one goes by the name: with dropout, or in the form of that code."""
    for name in tf_kd.PRESETS:
        args = run_of(tf_kd, name)
        assert args.student_model in ("tfkd_mobilenetv2", "tfkd_shufflenetv2", "resnet18", "resnet50"), name
    for name in born_again.PRESETS:
        args = run_of(born_again, name)
        for network in filter(None, (args.model, args.student_model)):
            assert network.startswith("densenet_") or re.fullmatch(r"wrn_28_\d+_drop30", network), name


@pytest.mark.parametrize("method", METHODS)
def test_each_figure_stands_beside_a_run_of_its_preset(method):
    module = importlib.import_module(f"python_trainers.{method}")
    for name, preset in module.PRESETS.items():
        found = published(module.PRESETS, run_of(module, name))
        if preset.accuracy is None:
            assert found is None, name
        else:  # two columns of one table, see presets/born_again.py
            again = name.replace("generation-1", "ban")
            assert found is module.PRESETS[again], name


@pytest.mark.parametrize(
    "same",
    [
        {"seed": 7},
        {"out": Path("elsewhere")},
        {"data_root": Path("data")},
        {"download": True},
        {"teacher": Path("out/teacher")},  # its accuracy is in the table
        {"train_fraction": 1.0},
        {"epoch_of": "images"},  # all of them
        {"workers": 0},
        {"compile": True},
        {"log_with": "tensorboard"},
        {"teacher_weight_decay": 5e-4},  # as the student's
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_no_figure_may_differ(same):
    args = run_of(kd, "cifar100-kd-vgg13-mobilenetv2_half")
    assert published(kd.PRESETS, replace(args, **same)).accuracy == 67.37


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "cifar10"},
        {"student_model": "shufflenetv1"},
        {"teacher_model": "resnet110"},
        {"temperature": 2.0},
        {"epochs": 1},
        {"learning_rate": 0.05},
        {"batch_size": 128},
        {"nesterov": True},
        {"milestones": (150, 180)},
        {"rotation": 15.0},  # an option that the preset does not set
        {"teacher_epochs": 20},
        {"teacher_learning_rate": 0.01},
        {"teacher_learning_rate": None},  # then it is the student's
        {"teacher_batch_size": 128},
        {"train_images": 500},
        {"train_fraction": 0.5},
        {"imbalance": 10.0},
        {"noisy_labels": 0.4},
        {"smoke": True},
        {"validation": 0.1},
        {"optimizer": "adamw"},
        {"model_ema_decay": 0.999},
        {"grad_accum_steps": 2},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_another_recipe_or_part_of_the_data_has_no_published_figure(other):
    args = run_of(kd, "cifar100-kd-vgg13-mobilenetv2_half")
    assert published(kd.PRESETS, replace(args, **other)) is None


def test_options_of_a_teacher_do_not_matter_where_there_is_none():
    args = replace(run_of(tf_kd, "cifar100-self-resnet18"), teacher_model="resnet50", teacher_epochs=9)
    assert published(tf_kd.PRESETS, args).accuracy == 77.10
    args = replace(run_of(born_again, "cifar100-densenet_90_60-ban+l"), teacher_weight=0.5)  # of the loss
    assert published(born_again.PRESETS, args) is None


def test_variants_of_one_trainer_have_their_own_figures():
    setting = run_of(crd, "cifar100-crd-vgg13-vgg8")
    for variant, accuracy in (("crd", 73.94), ("crd_kd", 74.29), ("kd", 72.98)):
        args = crd.PRESETS[variant].applied_to(setting)
        assert published(crd.PRESETS, args).accuracy == accuracy
    assert published(crd.PRESETS, replace(setting, crd_weight=0.5)) is None


def test_three_weights_of_one_paper(monkeypatch):
    for name, similarity, rotated in (("code", 10.0, 2.7), ("arxiv", 2.7, 10.0), ("eccv", 3.0, 5.0)):
        for preset in (name, f"cifar100-{name}-vgg13-vgg8"):
            args = trained_with(monkeypatch, sskd, ["--preset", preset])
            assert (args.ce_weight, args.kl_weight) == (0.1, 0.9)
            assert (args.similarity_weight, args.rotated_weight) == (similarity, rotated)
    assert trained_with(monkeypatch, sskd, ["--preset", "code"]) == sskd.Args()


def test_online_students_of_four_kinds(monkeypatch):
    """Each method with the structure and the ramp of its column, and the figure that the column shows."""
    for preset, method, structure, ramp, quantity in (
        ("cifar10-okddip-network-vgg16_fc", "okddip", "network", 80, "test_accuracy"),
        ("cifar100-one-branch-resnet32", "one", "branch", 80, "mean_accuracy"),
        ("cifar100-dml-network-densenet_40_12", "dml", "network", 0, "mean_accuracy"),
        ("cifar100-independent-branch-wrn_20_8", "independent", "branch", 80, "mean_accuracy"),
        ("cifar100-leaderless-branch-resnet32", "okddip", "branch", 80, "ensemble_accuracy"),
    ):
        args = trained_with(monkeypatch, okddip, ["--preset", preset])
        assert (args.method, args.structure, args.rampup_epochs) == (method, structure, ramp)
        assert (args.students, args.milestones, args.batch_size) == (4, (150, 225), 128)
        assert published(okddip.PRESETS, args).quantity == quantity
    source = okddip.PRESETS["cifar100-one-branch-resnet32"].source
    assert "71.24 %; all four together 75.10 %" in source
    leaderless = run_of(okddip, "cifar100-leaderless-branch-resnet32")
    assert published(okddip.PRESETS, replace(leaderless, leader=True)).accuracy == 74.37
    # Left to their defaults, structure and ramp are those of the paper.
    defaults = replace(leaderless, leader=True, structure=None, rampup_epochs=None)
    assert published(okddip.PRESETS, defaults).accuracy == 74.37
