"""Born-again networks: who teaches whom, the four losses, permutations and ensembles."""

import json
from types import SimpleNamespace

import kdkernels as kd
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from trainer_runs import assert_same_run, torch_settings, weights  # noqa: F401

from python_trainers import born_again
from python_trainers.common.checkpoint import fingerprint
from python_trainers.common.data import Batch, Images
from python_trainers.common.models import build_network
from python_trainers.common.task import Classification

pytestmark = pytest.mark.trainers
ROWS, CLASSES = 6, 5


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished smoke run: two generations."""
    out = tmp_path_factory.mktemp("smoke") / "born_again"
    torch.set_num_threads(1)
    assert born_again.main(["--smoke", "--train-images", "50", "--out", str(out)]) == 0
    return out


def summary(run):
    return json.loads((run / "summary.json").read_text())


def network_of(run):
    network = build_network("small_convnet", (1, 8, 8), 10)
    network.load_state_dict(weights(run))
    return network.eval()


def test_each_generation_is_taught_by_the_one_before_and_starts_anew(smoke):
    runs = [smoke / "generation-0", smoke / "generation-1", smoke]
    for teacher, student in zip(runs, runs[1:], strict=False):
        assert summary(student)["configuration"]["teacher"] == fingerprint(network_of(teacher))
    assert summary(runs[0])["configuration"]["seed"] == 0
    seeds = {summary(run)["configuration"]["seed"] for run in runs}
    assert len(seeds) == 3


def test_all_generations_see_the_same_few_images(smoke):
    assert {summary(run)["figures"]["train_images"] for run in (smoke / "generation-0", smoke)} == {50}


def test_summary_has_every_generation_and_ensembles(smoke):
    figures = summary(smoke)["figures"]
    for number, run in enumerate([smoke / "generation-0", smoke / "generation-1"]):
        assert figures[f"generation_{number}"] == summary(run)["figures"]["test_accuracy"]
    assert 0 <= figures["ensemble_2"] <= 1 and 0 <= figures["ensemble_3"] <= 1


def test_generation_0_can_be_given_and_of_another_network(smoke, tmp_path):
    options = ["--smoke", "--train-images", "50", "--generations", "1", "--student-model", "small_mlp"]
    options += ["--teacher", str(smoke / "generation-0")]
    assert born_again.main([*options, "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "generation-0").exists()
    assert summary(tmp_path)["configuration"]["network"] == "small_mlp"


def test_ensemble_averages_probabilities_not_logits():
    """Two networks lean to class 0, one is all but certain that it is class 1."""

    class Constant(nn.Module):
        def __init__(self, *logits):
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, pixels):
            return self.logits.expand(len(pixels), -1)

    images = Images(torch.zeros(4, 1, 8, 8), torch.tensor([1, 1, 1, 0]))
    networks = [Constant(3.0, 0.0, 0.0), Constant(3.0, 0.0, 0.0), Constant(-30.0, 0.0, -30.0)]
    mean = sum(torch.softmax(network.logits, -1) for network in networks) / 3
    logits = sum(network.logits for network in networks) / 3
    assert mean.argmax() == 0 and logits.argmax() == 1
    task = Classification({"test": images})
    experiment = SimpleNamespace(task=task, accelerator=Accelerator())
    assert born_again.together(networks, experiment) == 0.25


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64),
        torch.randint(CLASSES, (ROWS,), generator=generator),
        torch.arange(ROWS),
    )


def loss_of(batch, taught, **options):
    """The objective's value where the student's logits are the pixels."""
    args = born_again.Args(**options)
    objective = born_again.learn_from(lambda pixels: taught, args, CLASSES, Accelerator())
    return objective(nn.Identity(), batch)[0]


@pytest.fixture
def taught():
    return 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_losses_are_the_papers(batch, taught):
    student, labels, _ = batch
    log_q, p = student.log_softmax(-1), taught.softmax(-1)
    kl = (p * (p.log() - log_q)).sum(-1).mean()
    torch.testing.assert_close(loss_of(batch, taught, loss="ban"), kl)
    ce = F.cross_entropy(student, labels)
    weighted = loss_of(batch, taught, loss="ban+l", label_weight=0.5, teacher_weight=2.0)
    torch.testing.assert_close(weighted, 0.5 * ce + 2 * kl)
    confidence = p.amax(-1)
    per_row = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(
        loss_of(batch, taught, loss="cwtm"), (confidence / confidence.sum() * per_row).sum()
    )
    unnormalised = loss_of(batch, taught, loss="cwtm", normalise=False)
    torch.testing.assert_close(unnormalised, (confidence * per_row).mean())


@pytest.mark.parametrize("scope", ["sample", "batch", "fixed"])
def test_dkpp_permutes_all_but_the_largest(batch, taught, scope):
    """Against a student sure of the teacher's favourite, permuting the rest changes nothing; else it does."""
    torch.manual_seed(3)
    losses = {loss_of(batch, taught, loss="dkpp", scope=scope).item() for _ in range(4)}
    assert len(losses) == (1 if scope == "fixed" else 4)
    indifferent = torch.zeros_like(taught).scatter(1, taught.argmax(-1, keepdim=True), 2.0)
    loss = loss_of(batch._replace(pixels=indifferent), taught, loss="dkpp", scope=scope)
    torch.testing.assert_close(loss, kd.soft_cross_entropy(indifferent, taught))


def test_fixed_permutation_follows_from_the_seed(batch, taught):
    first, again, other = (
        loss_of(batch, taught, loss="dkpp", scope="fixed", seed=seed).item() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_permuted_others_keep_the_largest_and_follow_one_order():
    kept, order = torch.tensor([0, 2, 4]), torch.tensor([2, 0, 3, 1])
    permutation = born_again.permute_others(kept, order)
    assert permutation.tolist() == [[0, 3, 1, 4, 2], [3, 0, 2, 4, 1], [2, 0, 3, 1, 4]]


def test_seed_decides_the_run(smoke, tmp_path):
    assert born_again.main(["--smoke", "--train-images", "50", "--out", str(tmp_path)]) == 0
    assert_same_run(tmp_path, smoke)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--generations", "0"], "--generations must be >= 1, got 0"),
        (["--temperature", "0"], "--temperature must be > 0 and finite, got 0.0"),
        (["--teacher-weight", "-1"], "--teacher-weight must be >= 0 and finite, got -1.0"),
        (["--label-weight", "0", "--teacher-weight", "0"], "must not both be 0"),
        (["--student-model", "vgg"], "unknown network 'vgg'"),
        (["--preset", "cifar100-densenet_90-60-ban"], "there is: cifar100-densenet_90_60-ban, "),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path, capsys):
    assert born_again.main(["--out", str(tmp_path), *options]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("born_again: ") and sentence in error and "\n" not in error
