"""Online distillation: losses, ramp and figures of all students at once, and the one network that is kept."""

import json
from functools import partial
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from trainer_runs import assert_same_run, torch_settings  # noqa: F401

from python_trainers import compare, kd, okddip
from python_trainers.common.checkpoint import checkpoint_path, load_checkpoint
from python_trainers.common.data import Images, load_dataset
from python_trainers.common.metrics import accuracy
from python_trainers.common.models import build_network
from python_trainers.common.resolve import load_trained, resolve_network
from python_trainers.common.task import Classification

pytestmark = pytest.mark.trainers
IMAGES, CLASSES, STUDENTS = 6, 10, 4
FEW = ["--train-images", "50"]
DATASET = load_dataset("digits", data_root=None)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "okddip"
    torch.set_num_threads(1)
    assert okddip.main(["--smoke", *FEW, "--rampup-epochs", "2", "--out", str(out)]) == 0
    return out


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_smoke_run_logs_terms_and_figures_of_all_students(smoke):
    first, *_, last = entries(smoke)
    assert last["ce_peers"] < first["ce_peers"] and last["ce_leader"] < first["ce_leader"]
    assert [entry["ramp"] for entry in entries(smoke)] == [math.exp(-5), math.exp(-1.25), 1]
    for entry in entries(smoke):
        # The ramp is constant in an epoch: what holds in each step holds for the means.
        distilled = entry["ramp"] * (entry["kl_peers"] + entry["kl_leader"])
        assert entry["loss"] == pytest.approx(entry["ce_peers"] + entry["ce_leader"] + distilled, rel=1e-5)
        each = [entry[f"accuracy_{student}"] for student in range(1, STUDENTS + 1)]
        assert entry["test_accuracy"] == each[-1] and f"accuracy_{STUDENTS + 1}" not in entry
        assert entry["mean_accuracy"] == pytest.approx(sum(each) / STUDENTS)
        assert entry["diversity"] > 0
        for a in range(1, STUDENTS):
            assert sum(entry[f"attention_{a}_{b}"] for b in range(1, STUDENTS)) == pytest.approx(1)
    for plot in ("curves.png", "attention.png"):
        assert (smoke / plot).read_bytes().startswith(b"\x89PNG")


def test_kept_student_is_a_network_like_any_other(smoke, tmp_path):
    tracked = load_checkpoint(checkpoint_path(smoke))["tracked"]
    assert tracked["model"].keys() == build_network("small_convnet", (1, 8, 8), CLASSES).state_dict().keys()
    assert tracked["beside"]["query.weight"].shape == tracked["beside"]["key.weight"].shape == (8, 64)
    heads = [name for name in tracked["beside"] if name.endswith("head.weight")]
    assert len(heads) == STUDENTS - 1

    network, logged = load_trained(smoke, resolve_network("small_convnet", None, DATASET), DATASET)
    assert accuracy(network, DATASET.test, Accelerator()) == logged == entries(smoke)[-1]["test_accuracy"]
    options = ["--smoke", *FEW, "--teacher-model", "small_convnet", "--teacher", str(smoke)]
    assert kd.main([*options, "--out", str(tmp_path)]) == 0


def test_students_start_differently_and_the_kept_one_as_if_it_were_alone():
    torch.manual_seed(3)
    alone = build_network("small_convnet", (1, 8, 8), CLASSES)
    torch.manual_seed(3)
    students = build_students(okddip.Args(structure="network"))
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, students.network.state_dict()[name])
    heads = [network.head.weight for network in (students.network, *students.beside["peers"].others)]
    assert len({head.sum().item() for head in heads}) == STUDENTS


def build_students(args):
    """All students of ``args`` on digits, in float64."""
    args = args.completed()
    build = partial(build_network, args.student_model, (1, 8, 8), CLASSES)
    return okddip.METHODS[args.method](build(), args=args, build=build).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(IMAGES, 1, 8, 8, generator=generator, dtype=torch.float64)
    return pixels, torch.randint(CLASSES, (IMAGES,), generator=generator)


def each_student(students, pixels):
    """Features, logits and the trunk's map by the networks' parts, student by student, the kept one last."""
    network, others = students.network, students.beside["peers"].others
    if students.args.structure == "network":
        features = [student.forward_features(pixels) for student in (*others, network)]
        return features, [s.head(h) for s, h in zip((*others, network), features, strict=True)], None
    trunk = network.stages(pixels)[-2]
    features = [branch.pool(branch.stage_modules[-1](trunk)) for branch in (*others, network)]
    return features, [s.head(h) for s, h in zip((*others, network), features, strict=True)], trunk


def softened_kl(target, z, temperature):
    """T^2 KL(t || softmax(z / T)) of probabilities t [B, C] to which 1e-7 is added, the mean over rows."""
    t = target + 1e-7
    return temperature**2 * (t * (t.log() - (z / temperature).log_softmax(1))).sum(1).mean()


def expected_terms(students, pixels, labels):
    """Cross entropies and KLs of all students, written out peer by peer: two sums."""
    args, temperature = students.args, students.args.temperature
    features, logits, trunk = each_student(students, pixels)
    ce = sum(F.cross_entropy(z, labels) for z in logits)
    soft = [(z / temperature).softmax(1) for z in logits]
    if args.method == "okddip":
        peers = args.students - args.leader
        query, key = ([students.beside[name](h) for h in features] for name in ("query", "key"))
        kl = 0.0
        for a in range(peers):
            scores = torch.stack([(query[a] * key[b]).sum(1) for b in range(peers)], dim=1)
            weights = scores.softmax(1)
            if args.mix == "logits":
                mixture = sum(weights[:, b, None] * logits[b] for b in range(peers))
                target = (mixture / temperature).softmax(1)
            else:
                target = sum(weights[:, b, None] * soft[b] for b in range(peers))
            kl = kl + softened_kl(target.detach() if args.detach_targets else target, logits[a], temperature)
        if args.leader:
            mean = (sum(logits[:peers]) / peers / temperature).softmax(1)
            target = mean if args.mix == "logits" else sum(soft[:peers]) / peers
            kl = kl + softened_kl(target.detach() if args.detach_targets else target, logits[-1], temperature)
    elif args.method == "one":
        gate = students.beside["gate"]
        scores = gate.linear(trunk.mean((2, 3)))
        scores = F.relu(F.batch_norm(scores, None, None, gate.norm.weight, gate.norm.bias, training=True))
        together = sum(g[:, None] * z for g, z in zip(scores.softmax(1).unbind(1), logits, strict=True))
        ce = ce + F.cross_entropy(together, labels)
        kl = sum(softened_kl((together / temperature).softmax(1), z, temperature) for z in logits)
    elif args.pairwise:
        pairs = [(k, j) for j in range(len(logits)) for k in range(len(logits)) if k != j]
        kl = sum(softened_kl(soft[k], logits[j], temperature) for k, j in pairs) / (len(logits) - 1)
    else:
        kl = 0.0
        for j, z in enumerate(logits):
            others = [other for k, other in enumerate(logits) if k != j]
            kl = kl + softened_kl((sum(others) / len(others) / temperature).softmax(1), z, temperature)
    return ce, kl


VARIANTS = {
    "okddip": {},
    "okddip on networks": {"structure": "network"},
    "okddip, probabilities": {"mix": "probs"},
    "okddip without leader": {"leader": False},
    "okddip, constant targets": {"detach_targets": True},
    "okddip, two students": {"students": 2},
    "dml": {"method": "dml"},
    "dml, pairwise": {"method": "dml", "pairwise": True},
    "dml on branches": {"method": "dml", "structure": "branch"},
    "one": {"method": "one"},
    "independent": {"method": "independent"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_the_papers(variant):
    torch.manual_seed(0)
    args = okddip.Args(temperature=2.0, kl_weight=0.7, rampup_epochs=8, **VARIANTS[variant])
    students = build_students(args)
    students.begin_epoch(5)
    pixels, labels = batch()
    loss, parts = okddip.learn_together(students, okddip.Batch(pixels, labels, torch.arange(IMAGES)))
    gradients = torch.autograd.grad(loss, list(students.parameters()), allow_unused=True)

    ce, kl = expected_terms(students, pixels, labels)
    weight = 0.0 if args.method == "independent" else 0.7 * math.exp(-5 * 0.5**2)
    total = ce + weight * kl
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(sum(part for name, part in parts.items() if name.startswith("ce")), ce)
    torch.testing.assert_close(sum(part for name, part in parts.items() if name.startswith("kl")), kl)
    theirs = torch.autograd.grad(total, list(students.parameters()), allow_unused=True)
    for (name, weight), ours, its in zip(students.named_parameters(), gradients, theirs, strict=True):
        zeros = torch.zeros_like(weight)
        torch.testing.assert_close(zeros if ours is None else ours, zeros if its is None else its, msg=name)


def test_attention_learns_unless_targets_are_constant():
    for constant in (False, True):
        torch.manual_seed(0)
        students = build_students(okddip.Args(detach_targets=constant))
        loss, _ = students(*batch())
        query, key = torch.autograd.grad(loss, [students.beside[name].weight for name in ("query", "key")])
        # A gradient of 0, not none: data-parallel training waits for those of all weights.
        assert (query.abs().sum() == 0) == (key.abs().sum() == 0) == constant


def test_cl_ilr_divides_the_gradient_of_the_trunk_alone():
    gradients = {}
    for method in ("cl_ilr", "dml"):
        torch.manual_seed(0)
        students = build_students(okddip.Args(method=method, structure="branch", rampup_epochs=0))
        students(*batch())[0].backward()
        gradients[method] = {name: weight.grad for name, weight in students.named_parameters()}
    trunk = {name for name in gradients["dml"] if name.startswith("network.stage_modules.0.")}
    assert trunk
    for name, gradient in gradients["dml"].items():
        factor = 1 / STUDENTS if name in trunk else 1
        torch.testing.assert_close(gradients["cl_ilr"][name], factor * gradient, msg=name)


def test_ramp():
    weights = [okddip.ramp_up(epoch, 80) for epoch in (0, 40, 79, 80, 299)]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), math.exp(-5 / 80**2), 1, 1], rel=1e-12)
    assert okddip.ramp_up(0, 0) == 1


def test_defaults_that_depend_on_the_method():
    for method, structure, rampup in (("okddip", "branch", 80), ("one", "branch", 80), ("dml", "network", 0)):
        completed = okddip.Args(method=method, epochs=300).completed()
        assert (completed.structure, completed.rampup_epochs) == (structure, rampup)
    given = okddip.Args(method="dml", structure="branch", rampup_epochs=7).completed()
    assert (given.structure, given.rampup_epochs) == ("branch", 7)
    assert okddip.Args(epochs=40).completed().rampup_epochs == 11


@pytest.mark.parametrize("leader", [True, False])
def test_figures_are_those_of_the_students_one_by_one(leader):
    """More images than a batch of the test holds; the trunk runs once for each of the two."""
    torch.manual_seed(0)
    students = build_students(okddip.Args(leader=leader)).float()
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(1500, 1, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (1500,), generator=generator)
    runs = []
    students.network.stage_modules[0].register_forward_hook(lambda *_: runs.append(1))
    found = students.measure(Classification({"test": Images(pixels, labels)}), Accelerator())
    assert len(runs) == 2 and not students.training

    with torch.no_grad():
        features, logits, _ = each_student(students, pixels)
        peers = STUDENTS - leader
        correct = [(z.argmax(1) == labels).double().mean().item() for z in logits]
        soft = [z.softmax(1) for z in logits]
        distances = [(soft[a] - soft[b]).norm(dim=1) for a in range(peers) for b in range(a)]
        query, key = (
            torch.stack([students.beside[name](h) for h in features[:peers]], 1) for name in ("query", "key")
        )
        attention = (query @ key.mT).softmax(2).double().mean(0)
    expected = {
        "test_accuracy": correct[-1],
        "mean_accuracy": sum(correct) / STUDENTS,
        **{f"accuracy_{i}": value for i, value in enumerate(correct, start=1)},
        "ensemble_accuracy": (sum(logits[:peers]).argmax(1) == labels).double().mean().item(),
        "diversity": torch.stack(distances).double().mean().item(),
        **{f"attention_{a + 1}_{b + 1}": attention[a, b].item() for a in range(peers) for b in range(peers)},
        "ramp": 1.0,
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_ensemble_is_of_mean_logits_and_the_leader_has_no_part_in_it():
    torch.manual_seed(0)
    labels = torch.zeros(1, dtype=torch.long)
    logits = torch.tensor([[[5.0, 0.0, -9.0], [0.0, 2.0, -9.0], [0.0, 2.0, -9.0], [-9.0, 9.0, -9.0]]])
    assert logits[:, :3].softmax(-1).mean(1).argmax(-1) == 1  # of probabilities it is another
    for leader, right in ((True, True), (False, False)):
        students = build_students(okddip.Args(leader=leader)).float()
        figures = students.figures(logits, torch.zeros(1, STUDENTS, 64), labels)
        assert figures["ensemble_accuracy"].item() is right


def test_figures_in_half_precision(monkeypatch):
    torch.manual_seed(0)
    students = build_students(okddip.Args()).float()
    images = Images(torch.randn(64, 1, 8, 8), torch.randint(CLASSES, (64,)), standard=None)
    accelerator = Accelerator()
    expected = students.measure(Classification({"test": images}), accelerator)
    monkeypatch.setattr(accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    found = students.measure(Classification({"test": images}), accelerator)
    assert found != expected and found.keys() == expected.keys()
    for name in ("diversity", "attention_1_2"):  # rounded in a chain of four layers
        assert found[name] == pytest.approx(expected[name], rel=4 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("method", ["dml", "cl_ilr", "one", "independent"])
def test_rivals_learn(method, tmp_path):
    options = ["--smoke", *FEW, "--method", method, "--out", str(tmp_path)]
    assert okddip.main(options) == 0
    first, *_, last = entries(tmp_path)
    cross_entropy = "ce_branches" if method == "one" else "ce"
    assert last[cross_entropy] < first[cross_entropy] and last["kl"] > 0
    assert last["diversity"] > 0 and "attention_1_1" not in last and not (tmp_path / "attention.png").exists()
    configuration = json.loads((tmp_path / "summary.json").read_text())["configuration"]
    assert configuration["structure"] == ("network" if method == "dml" else "branch")


def test_one_peer_under_a_leader_listens_to_itself(tmp_path):
    assert okddip.main(["--smoke", *FEW, "--students", "2", "--out", str(tmp_path)]) == 0
    for entry in entries(tmp_path):
        assert entry["attention_1_1"] == 1 and entry["kl_peers"] < 1e-4 < entry["kl_leader"]
        assert "diversity" not in entry  # of one peer


def test_jobs_of_a_comparison(smoke, tmp_path):
    jobs = ["okddip:rampup-epochs=2", "okddip:method=one", "okddip:no-leader,structure=network"]
    options = ["--smoke", *FEW, "--seeds", "1", "--jobs", *jobs, "--out", str(tmp_path)]
    assert compare.main(options) == 0
    assert_same_run(tmp_path / "small_resnet-small_convnet" / "okddip-rampup-epochs-2" / "seed-0", smoke)
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [row["job"] for row in rows] == jobs
    assert all(row["network"] == "small_convnet" and row["teacher"] is None for row in rows)
    assert not (tmp_path / "from-labels").exists()  # nobody teaches


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--students", "1"], "--students must be 2 to 32, got 1"),
        (["--method", "dml", "--students", "33"], "--students must be 2 to 32, got 33"),
        (
            ["--method", "one", "--structure", "network"],
            "--method one needs the trunk that branches share; leave --structure network out",
        ),
        (["--method", "cl_ilr", "--structure", "network"], "--method cl_ilr needs the trunk that branches"),
        (["--temperature", "0"], "--temperature must be > 0 and finite, got 0.0"),
        (["--kl-weight", "nan"], "--kl-weight must be >= 0 and finite, got nan"),
        (["--rampup-epochs", "-1"], "--rampup-epochs must be >= 0, got -1"),
        (["--student-model", "small_mpl"], "unknown network 'small_mpl'"),
        (["--student-model", "small_mlp"], "SmallMLP has 1 stage, branches share all but the last"),
        (["--method", "one", "--grad-accum-steps", "64"], "or each part of it: --batch-size must be >= 128, got 64"),
        (["--student-model", "small_mlp", "--method", "one"], "SmallMLP has 1 stage"),
        (["--batch-size", "2000"], "--batch-size must be 1 to 1000, the images of an epoch, and a multiple of 1"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert okddip.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("okddip: ") and sentence in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_run_of_another_method_in_the_folder_is_refused(smoke, capsys):
    options = ["--smoke", *FEW, "--rampup-epochs", "2", "--mix", "probs", "--out", str(smoke)]
    assert okddip.main(options) == 1
    assert "(mix logits there, probs here)" in capsys.readouterr().err
