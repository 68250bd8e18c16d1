"""Comparisons: the same data for all, networks shared, nothing trained twice, one table."""

import json
from dataclasses import fields

import pytest
import torch
from trainer_process import interrupt
from trainer_runs import assert_same_run, epochs_written, torch_settings  # noqa: F401

from python_trainers import born_again, compare, kd, okddip, tf_kd
from python_trainers.common import comparison_table, experiment, tuning
from python_trainers.common.comparison_table import table, table_rows
from python_trainers.common.errors import Diverged, TrainerError
from python_trainers.common.jobs import build_job
from python_trainers.common.paired import percent
from python_trainers.common.run import Run

pytestmark = pytest.mark.trainers
PAIR = "small_mlp-small_convnet"
JOBS = ["baseline", "kd", "tf_kd:mode=self", "born_again:loss=cwtm,generations=1"]
NETWORKS = ["--pairs", "small_mlp/small_convnet"]
OPTIONS = [*NETWORKS, "--train-images", "50", "--seeds", "2", "--epochs", "2", "--teacher-epochs", "2"]
SMOKE = ["--smoke", *NETWORKS, "--seeds", "1"]
TUNED = [*SMOKE, "--train-images", "50", "--jobs", "baseline", "kd", "--tuning-seeds", "2"]
BASELINE_AT = {
    rate: f"from-labels/small_convnet-students-images-3-epochs-learning-rate-{rate}-seed-{{seed}}"
    for rate in ("0.003", "0.1")
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison that was never interrupted."""
    out = tmp_path_factory.mktemp("finished") / "compare"
    torch.set_num_threads(1)
    assert compare.main([*OPTIONS, "--jobs", *JOBS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def epochs_trained(monkeypatch):
    """Folders of the epochs trained from here on, one entry each."""
    trained, end_epoch = [], Run.end_epoch

    def count(run, epoch, **figures):
        trained.append(run.folder)
        end_epoch(run, epoch, **figures)

    monkeypatch.setattr(Run, "end_epoch", count)
    return trained


def job(text, pair="small_resnet/small_convnet", args=None):
    return build_job(text, pair, args or compare.Args(), teacher_epochs=40)


def rows(out):
    return {row["job"]: row for row in json.loads((out / "summary.json").read_text())["rows"]}


def test_writes_one_table_with_mean_and_spread(finished):
    found = rows(finished)
    assert list(found) == JOBS
    for row in found.values():
        first, second = row["accuracies"]
        assert row["mean"] == pytest.approx((first + second) / 2)
        assert row["spread"] == pytest.approx(abs(first - second) / 2**0.5)
        assert row["seeds"] == 2 and row["published"] is None
        assert row["rate"] == 0.01 and row["sweep"] is None
    plain, taught = (found[job]["accuracies"] for job in ("baseline", "kd"))
    gains = [b - a for a, b in zip(plain, taught, strict=True)]
    assert found["baseline"]["gain"] is None and found["kd"]["gains"] == pytest.approx(gains)
    table = (finished / "table.md").read_text()
    assert table.count("not comparable") == len(JOBS)
    gain = f"{sum(gains) / 2:+.2f} ± {abs(gains[0] - gains[1]) / 2**0.5:.2f}"
    assert f"| 0.01 | {found['kd']['mean']:.2f} | {found['kd']['spread']:.2f} | {gain} | 2 |" in table
    assert "Rate: as given, tuned for no job." in table
    assert (finished / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_networks_trained_from_labels_are_shared(finished):
    assert sorted(path.name for path in (finished / "from-labels").iterdir()) == [
        "small_convnet-students-images-2-epochs-seed-0",
        "small_convnet-students-images-2-epochs-seed-1",
        "small_mlp-all-images-2-epochs-seed-0",
    ]
    found = rows(finished)
    for job in JOBS[2:]:  # taught by the baseline of the same seed
        assert found[job]["teacher"] == pytest.approx(found["baseline"]["mean"])


def test_jobs_are_runs_of_their_method(finished, tmp_path):
    options = ["--train-images", "50", "--epochs", "2", "--seed", "1"]
    (teacher,) = (finished / "from-labels").glob("small_mlp-*")
    of_teacher = ["--teacher-model", "small_mlp", "--teacher", str(teacher)]
    assert kd.main([*options, *of_teacher, "--out", str(tmp_path / "kd")]) == 0
    assert_same_run(tmp_path / "kd", finished / PAIR / "kd" / "seed-1")
    assert tf_kd.main([*options, "--mode", "self", "--out", str(tmp_path / "self")]) == 0
    assert_same_run(tmp_path / "self", finished / PAIR / "tf_kd-mode-self" / "seed-1")


def test_finished_comparison_reads_and_trains_nothing(finished, epochs_trained, monkeypatch, capsys):
    before = rows(finished)
    for method in (kd, tf_kd, born_again):
        monkeypatch.setattr(method, "train", None)
    assert compare.main([*OPTIONS, "--jobs", *JOBS, "--out", str(finished)]) == 0
    assert epochs_trained == [] and rows(finished) == before
    assert "`born_again:loss=cwtm,generations=1`" in capsys.readouterr().out


def test_killed_comparison_trains_what_is_missing(finished, tmp_path, epochs_trained, capsys):
    out = tmp_path / "out"
    options = [*OPTIONS, "--jobs", *JOBS, "--out", str(out)]
    in_the_middle = out / PAIR / "tf_kd-mode-self" / "seed-0"
    interrupt("compare", options, in_the_middle, tmp_path / "log")
    done = {path.parent: epochs_written(path.parent) for path in out.rglob("metrics.jsonl")}
    assert done[in_the_middle] == 1

    assert compare.main(options) == 0
    runs = [path.parent for path in finished.rglob("metrics.jsonl")]
    for run in runs:
        here = out / run.relative_to(finished)
        assert_same_run(here, run)
        assert epochs_trained.count(here) == 2 - done.get(here, 0)
    assert rows(out) == rows(finished)


def test_teacher_is_trained_where_it_is_wanted_and_jobs_can_be_added(tmp_path, epochs_trained):
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    options = [*SMOKE, "--teacher", str(teacher), "--out", str(out)]
    assert compare.main([*options, "--jobs", "kd"]) == 0
    assert epochs_trained.count(teacher) == 3 and not (out / "from-labels").exists()
    epochs_trained.clear()
    assert compare.main([*options, "--jobs", "kd", "kd:temperature=2"]) == 0
    assert set(epochs_trained) == {out / PAIR / "kd-temperature-2" / "seed-0"}


def test_teachers_of_other_recipes_are_other_teachers(tmp_path, epochs_trained):
    jobs = ["kd", "kd:teacher-learning-rate=0.01", "kd:teacher-learning-rate=0.05", "kd:epochs=1"]
    teacher = tmp_path / "teacher"
    options = [*SMOKE, "--train-images", "50", "--teacher", str(teacher), "--out", str(tmp_path / "out")]
    assert compare.main([*options, "--jobs", *jobs]) == 0
    (other,) = (tmp_path / "out" / "from-labels").iterdir()
    assert json.loads((other / "summary.json").read_text())["configuration"]["learning_rate"] == 0.05
    assert epochs_trained.count(teacher) == epochs_trained.count(other) == 3


def test_gains_are_over_a_baseline_of_the_same_network(tmp_path):
    jobs = ["baseline", "tf_kd:mode=re_kd", "tf_kd:mode=reg"]
    assert compare.main([*SMOKE, "--jobs", *jobs, "--out", str(tmp_path)]) == 0
    found = rows(tmp_path)
    assert found["tf_kd:mode=re_kd"]["network"] == "small_mlp" and found["tf_kd:mode=re_kd"]["gain"] is None
    assert found["tf_kd:mode=reg"]["gain"] is not None and found["tf_kd:mode=reg"]["spread_of_gain"] is None


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A comparison that looks for rates, one of which is far too large."""
    out = tmp_path_factory.mktemp("tuned") / "compare"
    assert compare.main([*TUNED, "--rates", "0.003", "0.1", "1e9", "--out", str(out)]) == 0
    return out


def test_each_job_has_the_rate_that_is_best_on_images_held_out(tuned):
    found = rows(tuned)
    for job, row in found.items():
        runs = tuned / "tuning" / PAIR / job
        for rate, accuracies in row["sweep"].items():
            if rate == "1000000000.0":
                assert accuracies is None
                continue
            of_seeds = [tuned / "tuning" / BASELINE_AT[rate].format(seed=seed) for seed in (1000, 1001)]
            if job != "baseline":
                of_seeds = [runs / f"rate-{rate}" / f"seed-{seed}" for seed in (1000, 1001)]
            summaries = [json.loads((run / "summary.json").read_text()) for run in of_seeds]
            for summary, accuracy in zip(summaries, accuracies, strict=True):
                assert summary["configuration"]["validation"] == 0.2
                assert 100 * summary["figures"]["validation_accuracy"] == accuracy
        means = {float(rate): sum(values) for rate, values in row["sweep"].items() if values}
        assert row["rate"] == max(means, key=means.get) == 0.1 and not row["rate_at_the_edge"]
    table = (tuned / "table.md").read_text()
    assert "| 0.1 | " in table and table.count("| diverged |") == 2
    assert "with the seeds 1000 to 1001 and tested on the 20% of the training split" in table


def test_tuned_jobs_are_runs_of_their_method_and_share_the_untuned_teacher(tuned, tmp_path):
    (teacher,) = (tuned / "from-labels").glob("small_mlp-*")
    assert json.loads((teacher / "summary.json").read_text())["configuration"]["learning_rate"] == 0.01
    options = ["--smoke", "--train-images", "50", "--learning-rate", "0.1", "--out", str(tmp_path)]
    assert kd.main([*options, "--teacher-model", "small_mlp", "--teacher", str(teacher)]) == 0
    assert_same_run(tmp_path, tuned / PAIR / "kd" / "rate-0.1" / "seed-0")


def test_rates_and_tuning_seeds_can_be_added(tuned, epochs_trained):
    options = ["--rates", "0.003", "0.1", "0.2", "--tuning-seeds", "3", "--out", str(tuned)]
    assert compare.main([*TUNED[:-2], *options]) == 0
    tuning = {path for path in epochs_trained if tuned / "tuning" in path.parents}
    assert len(tuning) == 2 * (3 + 2)  # three seeds at the new rate, the third seed at the others
    assert {path.name.rpartition("-")[2] for path in tuning} == {"1000", "1001", "1002"}


def test_teacher_that_is_named_is_trained_on_all_images_before_the_tuning(tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    options = [*SMOKE, "--rates", "0.01", "0.1", "--tuning-seeds", "1", "--teacher", str(teacher), "--jobs", "kd"]
    assert compare.main([*options, "--out", str(out)]) == 0
    assert json.loads((teacher / "summary.json").read_text())["figures"]["train_images"] == 1000
    assert not list(out.rglob("from-labels"))


def test_the_best_rate():
    def found(**accuracies):
        table = {float(rate): accuracy for rate, accuracy in accuracies.items()}
        return tuning.sweep(list(table), [0, 1], lambda rate, seed: table[rate])

    assert found(**{"0.1": 0.5, "0.2": 0.7, "0.05": 0.7, "1": 0.6}).best == 0.05  # the smallest of the best
    assert found(**{"0.1": 0.5, "0.2": 0.7, "0.4": 0.6}).best_is_at_the_edge is False
    for rate in ("0.1", "0.4"):
        assert found(**{"0.1": 0.5, "0.2": 0.4, "0.4": 0.5, rate: 0.6}).best_is_at_the_edge is True


def test_rates_that_all_diverge_are_refused():
    def train(rate, seed):
        raise Diverged("loss is nan")

    with pytest.raises(TrainerError, match="training diverged at each of --rates 0.5 2"):
        tuning.sweep([0.5, 2], [0], train)


def test_paired_differences_vary_less_than_the_figures():
    ours, baseline = percent([0.9, 0.8, 0.7]), percent([0.85, 0.76, 0.64])
    assert (ours.mean, ours.spread) == pytest.approx((80, 10))
    gain = ours.over(baseline)
    assert gain.values == pytest.approx((5, 4, 6)) and gain.signed() == "+5.00 ± 1.00"
    assert percent([0.5]).spread is None and percent([0.5]).over(percent([0.6])).signed() == "-10.00"


def test_students_of_a_pair_share_the_teachers_head(tmp_path, epochs_trained):
    jobs = ["sskd:head-epochs=2", "sskd:head-epochs=2,similarity-weight=3", "crd"]
    options = [*OPTIONS, "--epochs", "1", "--teacher-epochs", "1", "--out", str(tmp_path)]
    assert compare.main([*options, "--jobs", *jobs]) == 0
    (teacher,) = (tmp_path / "from-labels").iterdir()
    assert {path.parent for path in epochs_trained if path.name.startswith("head-")} == {teacher}
    assert sum(path.name.startswith("head-") for path in epochs_trained) == 2
    assert list(rows(tmp_path)) == jobs


def test_wrong_labels_are_the_same_for_all_jobs(tmp_path):
    options = [*SMOKE, "--noisy-labels", "0.4"]
    options += ["--jobs", "baseline", "born_again:generations=1"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        resolve = experiment.resolve_dataset

        def watch(options, **given):
            seen.append(resolve(options, **given))
            return seen[-1]

        patch.setattr(experiment, "resolve_dataset", watch)
        assert compare.main([*options, "--out", str(tmp_path)]) == 0
    (first, images), (second, others) = seen
    assert 380 < (images.labels != images.clean_labels).sum() < 420
    assert torch.equal(images.labels, others.labels) and torch.equal(first.train.labels, second.train.labels)


def recipe_of(preset, **options):
    """Options of a comparison whose recipe and data are those of a preset."""
    common = {field.name for field in fields(compare.Args)} - {"teacher_epochs"}
    return compare.Args(**{name: value for name, value in preset.options.items() if name in common}, **options)


def test_published_figures_stand_beside_runs_of_the_same_setting():
    tian, yuan = kd.PRESETS["cifar100-kd-vgg13-vgg8"], tf_kd.PRESETS["cifar100-kd-resnet18-mobilenetv2"]
    mobile = kd.PRESETS["cifar100-kd-vgg13-mobilenetv2_half"]
    furlanello = born_again.PRESETS["cifar100-densenet_90_60-ban+l"]
    chen = okddip.PRESETS["cifar100-okddip-branch-resnet32"]
    slow, of_code = "sskd:head-epochs=60,learning-rate=0.01", "form=code,reduction=elementmean"
    for preset, text, pair, accuracy in (
        (tian, "kd", "vgg13/vgg8", 72.98),
        (tian, "baseline", "vgg13/vgg8", 70.36),
        (tian, "crd:kl-weight=1", "vgg13/vgg8", 74.29),
        (tian, "sskd:head-epochs=60", "vgg13/vgg8", 75.33),
        (tian, slow, "resnet32x4/shufflenetv1", 78.44),  # the student alone, the teacher has the comparison's rate
        (tian, f"{slow},teacher-learning-rate=0.01", "resnet32x4/shufflenetv1", None),
        (mobile, "kd", "vgg13/mobilenetv2_half", None),  # here the teacher, too, has 0.01
        (mobile, "kd:teacher-learning-rate=0.05", "vgg13/mobilenetv2_half", 67.37),
        (mobile, "kd:learning-rate=0.05", "vgg13/vgg8", None),
        (yuan, "baseline", "resnet50/resnet18", 75.87),
        (yuan, f"tf_kd:mode=kd,alpha=0.95,{of_code}", "resnet18/tfkd_mobilenetv2", 71.05),
        (yuan, f"tf_kd:mode=reg,alpha=0.1,multiplier=100,{of_code}", "resnet50/resnet18", 77.36),
        (yuan, "tf_kd:mode=reg", "resnet50/resnet18", None),
        (furlanello, "born_again:loss=ban+l,generations=1", "resnet50/densenet_90_60", 83.07),
        (furlanello, "born_again:loss=cwtm", "resnet50/densenet_90_60", None),
        (chen, "okddip", "resnet110/resnet32", 74.37),  # structure by default
        (chen, "okddip:method=dml", "resnet110/resnet32", 73.53),
        (chen, "okddip:no-leader", "resnet110/resnet32", 76.55),
        (chen, "okddip:students=8", "resnet110/resnet32", None),
        (tian, "okddip", "resnet110/resnet32", None),
    ):
        for data, expected in (({}, accuracy), ({"train_images": 500}, None)):
            epochs = preset.options.get("teacher_epochs", 40)
            found = build_job(text, pair, recipe_of(preset, **data), epochs).published()
            assert (found and found.accuracy) == expected, text


def test_published_figure_of_another_quantity_stands_beside_the_same_of_ours():
    args = recipe_of(okddip.PRESETS["cifar100-okddip-branch-resnet32"])
    figures = {"test_accuracy": 0.71, "mean_accuracy": 0.72, "ensemble_accuracy": 0.73}
    summaries = [{"figures": figures, "configuration": {"network": "resnet32"}}]
    texts = ("okddip", "okddip:method=dml", "okddip:no-leader", "kd")
    jobs = [build_job(text, "resnet110/resnet32", args, teacher_epochs=40) for text in texts]
    text = table(table_rows([(job, None, summaries) for job in jobs]), args)
    cells = [line.rpartition(" | ")[2] for line in text.splitlines() if "`" in line]
    expected = (
        ("74.37 (", ") |"),
        ("mean_accuracy 73.53 (", "), here 72.00 |"),
        ("ensemble_accuracy 76.55 (", "), here 73.00 |"),
        ("not comparable", " |"),
    )
    for cell, (start, end) in zip(cells, expected, strict=True):
        assert cell.startswith(start) and cell.endswith(end)


def test_a_published_figure_stands_beside_the_same_quantity():
    common = recipe_of(okddip.PRESETS["cifar100-okddip-branch-resnet32"])
    summary = {"figures": {"test_accuracy": 0.7, "mean_accuracy": 0.71}, "configuration": {"network": "resnet32"}}
    dml = build_job("okddip:method=dml", "resnet110/resnet32", common, 40)
    table = comparison_table.table(comparison_table.table_rows([(dml, None, [summary])]), common)
    assert "| 70.00 |" in table and "| mean_accuracy 73.53 (" in table and ", here 71.00 |" in table


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kdd", "job 'kdd': unknown method 'kdd'; there is: kd, "),
        ("kd:temprature=2", "job 'kd:temprature=2': unknown option 'temprature'; there is: temperature, "),
        ("kd:temperature=hot", "'kd:temperature=hot': option temperature does not take 'hot', it takes a number"),
        ("kd:temperature", "option temperature needs a value, temperature=VALUE: it takes a number"),
        ("kd:milestones=3+x", "option milestones does not take '3+x', it takes a whole number, or several joined by +"),
        ("okddip:structure=zzz", "option structure does not take 'zzz', it takes branch, network or None"),
        ("okddip:rampup-epochs=2.5", "option rampup-epochs does not take '2.5', it takes a whole number or None"),
        ("okddip:leader=yes", "option leader is a switch: write leader or no-leader, got 'leader=yes'"),
        ("kd:temperature=0", "job 'kd:temperature=0': --temperature must be > 0 and finite, got 0.0"),
        ("tf_kd:mode=regular", "option mode does not take 'regular', it takes kd, re_kd, de_kd, self, reg, "),
        ("kd:seed=3", "job 'kd:seed=3': unknown option 'seed'"),
        ("baseline:epochs=3", "job 'baseline:epochs=3': baseline has no options"),
    ],
)
def test_mistaken_job_is_named(text, sentence):
    with pytest.raises(TrainerError) as error:
        job(text)
    assert sentence in str(error.value)


def test_options_of_a_job_have_the_types_of_their_fields():
    for text, name, value in (
        ("born_again:no-normalise", "normalise", False),
        ("born_again:normalise", "normalise", True),
        ("born_again:loss=ban+l", "loss", "ban+l"),
        ("okddip:structure=network", "structure", "network"),
        ("okddip:structure=None", "structure", None),
        ("okddip:rampup-epochs=0", "rampup_epochs", 0),
        ("kd:learning-rate=1e-3", "learning_rate", 1e-3),
        ("kd:milestones=3", "milestones", (3,)),
        ("kd:milestones=3+5", "milestones", (3, 5)),
    ):
        found = getattr(job(text).args, name)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["--rates", "0.1", "0"], "--learning-rate must be > 0 and finite, got 0.0"),
        (["--rates", "0.1", "0.1"], "--rates must all be different, got 0.1 0.1"),
        (["--rates", "0.1", "--tuning-seeds", "0"], "--tuning-seeds must be >= 1, got 0"),
        (["--rates", "0.1", "--seeds", "1001"], "--seeds must be <= 1000 under --rates, whose seeds are above, got 1001"),
        (
            ["--rates", "0.1", "--jobs", "kd:learning-rate=0.1"],
            "job 'kd:learning-rate=0.1' has a rate of its own, which --rates are there to find: leave one of them out",
        ),
        (["--pairs", "small_resnet"], "--pairs must be TEACHER/STUDENT, got 'small_resnet'"),
        (["--pairs", "vgg/small_mlp"], "unknown network 'vgg'"),
        (["--jobs", "kd", "kd"], "--jobs must be one or more, all different, got kd kd"),
        (
            ["--pairs", "small_resnet/small_mlp", "small_convnet/small_mlp", "--teacher", "out/teacher"],
            "--teacher is one network, --pairs have small_convnet, small_resnet",
        ),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert compare.main([*options, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("compare: ") and sentence in error and "\n" not in error


def test_other_common_options_need_another_folder(finished, capsys):
    assert compare.main([*OPTIONS, "--learning-rate", "0.5", "--jobs", *JOBS, "--out", str(finished)]) == 1
    assert "(learning_rate 0.01 there, 0.5 here)" in capsys.readouterr().err


def test_failing_job_is_named(tmp_path, capsys):
    options = [*SMOKE, "--jobs", "baseline", "tf_kd:mode=lsr,learning-rate=1e9"]
    assert compare.main([*options, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "compare: job 'tf_kd:mode=lsr,learning-rate=1e9', seed 0: " in error
    assert "lower --learning-rate" in error
