"""Students that learn together: what they share, what is their own, and how many weights that makes."""

from functools import cache

import pytest
import torch

pytest.importorskip("torchvision", reason="the trainers need `pip install kdkernels[trainers]`")

from python_trainers.common.errors import TrainerError
from python_trainers.common.models import Network, build_network
from python_trainers.common.models.peers import (
    Gate,
    Peers,
    branch_of,
    build_peers,
    scale_gradient,
)

pytestmark = pytest.mark.trainers
CIFAR = (3, 32, 32)
STRUCTURES = ("branch", "network")

# Chen et al. 2020, four students on CIFAR-100 with the two projections of the features, in millions.
PUBLISHED = [
    ("resnet32", "1.554", "1.892"),
    ("resnet110_bottleneck", "3.874", "4.700"),
    ("wrn_20_8", "22.61", "27.50"),
    ("vgg16_fc", "38.34", "61.26"),
    ("densenet_40_12", None, "0.757"),
]
SMALL = ["small_resnet", "small_convnet", "wrn_10_1", "densenet_16_6", "vgg8", "torchvision:resnet18"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def built(name: str, structure: str, students: int = 3, classes: int = 5) -> tuple[Network, Peers]:
    network = build_network(name, CIFAR, classes)
    return network, build_peers(lambda: build_network(name, CIFAR, classes), others=students - 1, structure=structure)


@cache
def shapes_only(name: str, structure: str) -> tuple[Network, Peers]:
    with torch.device("meta"):
        return built(name, structure, students=4, classes=100)


def count(*modules: torch.nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def weights_and_projections(name: str, structure: str) -> int:
    network, peers = shapes_only(name, structure)
    return count(network, peers) + 2 * network.num_features * (network.num_features // 8)


@pytest.mark.parametrize(
    ("name", "structure", "millions"),
    [
        (name, structure, millions)
        for name, *both in PUBLISHED
        for structure, millions in zip(STRUCTURES, both, strict=True)
        if millions
    ],
)
def test_published_parameters(name, structure, millions):
    decimals = len(millions.partition(".")[2])
    assert f"{weights_and_projections(name, structure) / 1e6:.{decimals}f}" == millions


def test_branches_of_densenet_have_dense_blocks_of_their_own():
    """The published 0.233 M is of one last block for all four, with only the final layers their own."""
    network, _ = shapes_only("densenet_40_12", "branch")
    norm, width = network.stage_modules[-1][-2], network.num_features
    assert isinstance(norm, torch.nn.BatchNorm2d)
    of_one_block = count(network) + 3 * count(norm, network.head) + 2 * width * (width // 8)
    assert f"{of_one_block / 1e6:.3f}" == "0.233"
    assert weights_and_projections("densenet_40_12", "branch") == 431_368

    network, peers = built("densenet_40_12", "branch")
    of_all = [list(student.stage_modules[-1].parameters()) for student in (*peers.others, network)]
    assert len({id(weight) for weights in of_all for weight in weights}) == 3 * len(of_all[0])
    assert all(isinstance(branch.stage_modules[-1][-1], torch.nn.ReLU) for branch in peers.others)
    features = peers(network, torch.randn(2, *CIFAR))[1]
    assert features.min() >= 0  # the leader's, too, are behind the activation


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", SMALL)
def test_each_student_is_what_it_would_be_alone(name, structure):
    """Its logits are those of the network put together from trunk and branch; the deployed one is last."""
    network, peers = built(name, structure)
    network.eval(), peers.eval()
    images = torch.randn(2, *CIFAR)
    with torch.no_grad():
        logits, features, trunk = peers(network, images)
        assert logits.shape == (2, 3, 5) and features.shape == (2, 3, network.num_features)
        assert torch.equal(logits[:, -1], network(images))
        assert torch.equal(features[:, -1], network.forward_features(images))
        if structure == "branch":
            map_ = network.stages(images)[-2]
            assert torch.equal(trunk, map_) and trunk.shape[1] == network.stage_channels[-2]
        else:
            map_ = images
            assert trunk is None
        for i, student in enumerate(peers.others):
            assert torch.equal(logits[:, i], student(map_))
            assert torch.equal(logits[:, i], student.head(features[:, i]))
    assert len({tuple(of_one.flatten().tolist()) for of_one in logits.unbind(1)}) == 3


@pytest.mark.parametrize("structure", STRUCTURES)
def test_weights_are_drawn_independently(structure):
    network, peers = built("small_resnet", structure)
    own = [build_network("small_resnet", CIFAR, 5), network, *peers.others]
    for a in range(4):
        for b in range(a):
            last = [own[i].stage_modules[-1].conv1.weight for i in (a, b)]
            assert torch.corrcoef(torch.stack([w.flatten() for w in last]))[0, 1].abs() < 0.05
            assert not torch.equal(own[a].head.weight, own[b].head.weight)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_seed_decides_the_weights(structure):
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(built("small_convnet", structure)[1].parameters())

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize(("structure", "runs"), [("branch", 1), ("network", 3)])
def test_the_trunk_runs_once(structure, runs):
    network, peers = built("small_resnet", structure)
    images = torch.randn(4, *CIFAR)
    stems, lasts = [], []
    for student in (*peers.others, network):
        if not isinstance(student.stem, torch.nn.Identity):
            student.stem.register_forward_hook(lambda *_: stems.append(1))
        student.stage_modules[-1].register_forward_hook(lambda *_: lasts.append(1))
    peers(network, images)
    assert (len(stems), len(lasts)) == (runs, 3)
    assert network.stem[1].num_batches_tracked == 1  # statistics of the batch were taken once


def test_the_trunk_learns_from_every_branch():
    """Its gradient is the sum of those of the branches; a branch learns from itself alone."""
    network, peers = built("small_resnet", "branch")
    network.eval(), peers.eval()  # statistics that do not move between the passes
    images = torch.randn(4, *CIFAR)

    def gradients(pick: slice, of: torch.nn.Module) -> torch.Tensor:
        logits, _, _ = peers(network, images)
        loss = logits[:, pick].double().logsumexp(-1).sum()
        grads = torch.autograd.grad(loss, list(of.parameters()), allow_unused=True)
        return torch.cat([(torch.zeros(1) if grad is None else grad).flatten() for grad in grads])

    trunk = torch.nn.ModuleList([network.stem, network.stage_modules[0], network.stage_modules[1]])
    alone = [gradients(slice(i, i + 1), trunk) for i in range(3)]
    assert all(grad.abs().max() > 0 for grad in alone)
    together = gradients(slice(None), trunk)
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-4 * together.abs().max())
    for i, branch in enumerate((*peers.others, network.stage_modules[-1])):
        taught = [bool(gradients(slice(j, j + 1), branch).any()) for j in range(3)]
        assert taught == [i == j for j in range(3)]


def test_rescaling_where_the_trunk_forks():
    """Forward unchanged; the trunk's gradient a third, that of the branches whole."""
    network, peers = built("small_resnet", "branch")
    rescaled = Peers(peers.others, "branch", fork_scale=1 / 3)
    network.eval(), peers.eval(), rescaled.eval()
    images = torch.randn(4, *CIFAR)
    weights = {**dict(network.named_parameters()), **dict(peers.named_parameters())}
    found = []
    for of in (peers, rescaled):
        logits, _, _ = of(network, images)
        found.append((logits, torch.autograd.grad(logits.logsumexp(-1).sum(), list(weights.values()))))
    (plain_logits, plain), (logits, grads) = found
    assert torch.equal(logits, plain_logits)
    for name, grad, before in zip(weights, grads, plain, strict=True):
        scale = 1 / 3 if name.startswith(("stem.", "stage_modules.0.", "stage_modules.1.")) else 1.0
        torch.testing.assert_close(grad, before * scale, rtol=1e-4, atol=1e-6 * float(before.abs().max()))


def test_scaled_gradient_of_any_order():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(scale_gradient(x, 0.25), x)
    (first,) = torch.autograd.grad(scale_gradient(x, 0.25).pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, 0.25 * 3 * x**2)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.any()


def test_compiles_whole():
    network, peers = built("small_convnet", "branch")
    rescaled = Peers(peers.others, "branch", fork_scale=1 / 3)
    network.double(), rescaled.double()
    images = torch.randn(4, *CIFAR, dtype=torch.float64)
    compiled = torch.compile(lambda x: rescaled(network, x)[0], fullgraph=True, backend="aot_eager")
    first = [network.stage_modules[0][0].weight]
    expected = torch.autograd.grad(rescaled(network, images)[0].sum(), first)
    found = torch.autograd.grad(compiled(images).sum(), first)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_checkpoint(structure):
    """What is saved holds each weight once and brings every student back."""
    network, peers = built("small_resnet", structure)
    images = torch.randn(4, *CIFAR)
    peers(network, images)  # statistics of their own
    saved = {"model": network.state_dict(), "beside": peers.state_dict()}
    own = count(*(network.stage_modules[-1:] if structure == "branch" else [network]))
    head = count(network.head) if structure == "branch" else 0
    assert count(peers) == 2 * (own + head)

    torch.manual_seed(1)
    other, others = built("small_resnet", structure)
    other.load_state_dict(saved["model"])
    others.load_state_dict(saved["beside"])
    for module in (network, peers, other, others):
        module.eval()
    assert torch.equal(others(other, images)[0], peers(network, images)[0])


def test_gate():
    gate = Gate(8, 3).double()
    trunk = torch.randn(16, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    shares = gate(trunk)
    scores = gate.linear(trunk.mean((2, 3)))
    scores = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + gate.norm.eps).sqrt()
    torch.testing.assert_close(shares, scores.clamp(min=0).softmax(1))
    assert count(gate) == 8 * 3 + 3 + 2 * 3
    shares.square().sum().backward()
    assert trunk.grad.any() and gate.linear.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "others", "structure", "sentence"),
    [
        (
            "small_mlp",
            2,
            "branch",
            "SmallMLP has 1 stage, branches share all but the last of two or more; take another network or "
            "students with networks of their own",
        ),
        ("resnet20", 0, "branch", "others must be >= 1, got 0"),
        ("resnet31", 2, "network", "unknown network 'resnet31'; there is: "),
        ("vgg16_fc", 2, "branch", "network 'vgg16_fc' cannot take images of 3x8x8"),
    ],
)
def test_refused(name, others, structure, sentence):
    with pytest.raises(TrainerError) as error:
        build_peers(lambda: build_network(name, (3, 8, 8), 10), others=others, structure=structure)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_of_one_stage_has_students_of_its_own():
    network, peers = built("small_mlp", "network")
    assert peers(network, torch.randn(2, *CIFAR))[0].shape == (2, 3, 5)


def test_a_branch_is_a_network_of_the_map_it_takes():
    network = build_network("small_convnet", (1, 8, 8), 10)
    branch = branch_of(build_network("small_convnet", (1, 8, 8), 10))
    assert branch.num_features == network.num_features
    assert branch.stage_channels == network.stage_channels[-1:]
    assert [m.shape for m in branch.stages(torch.randn(2, 8, 4, 4))] == [(2, 16, 2, 2)]
