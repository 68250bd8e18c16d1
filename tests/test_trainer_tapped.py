"""Networks of any origin under the trainers: logits, features and maps of theirs, and what is refused."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision", reason="the trainers need `pip install kdkernels[trainers]`")

from python_trainers.common.errors import TrainerError
from python_trainers.common.models import build_network
from python_trainers.common.models.tapped import Tapped, as_classifier
from python_trainers.common.models.trial import check_logits, check_training

pytestmark = pytest.mark.trainers
SHAPE = (3, 32, 32)


class Plain(nn.Module):
    """A user's classifier: names of its own, dropout before the last layer, counts its calls."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.Linear(8, 6)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(6, classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return self.out(self.drop(self.neck(self.body(images).mean((2, 3))).relu()))


class Returns(nn.Module):
    """Logits in another wrapping."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.plain, self.wrap = Plain(), wrap

    def forward(self, images):
        return self.wrap(self.plain(images))


class Both(nn.Module):
    """A learner, whose forward returns what a loss needs."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.with_features(images)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.randn(4, *SHAPE)


def tapped(module, **names):
    return Tapped(module, **names).locate(torch.zeros(2, *SHAPE))


def test_a_network_gives_both_in_one_forward(images):
    network = build_network("resnet20", SHAPE, 5).eval()
    features, logits = network.with_features(images)
    assert torch.equal(features, network.forward_features(images)) and torch.equal(logits, network(images))
    assert network.classes == 5 and as_classifier(network, SHAPE, 5, "student") is network


def test_the_features_are_what_the_last_layer_takes(images):
    network = tapped(Plain())
    assert (network.num_features, network.classes) == (6, 5)
    features, logits = network.with_features(images)  # in training mode: after this forward's dropout
    assert torch.equal(logits, network.module.out(features))
    network.eval()
    assert torch.equal(network.with_features(images)[1], network(images))
    assert network.state_dict().keys() == {f"module.{name}" for name in Plain().state_dict()}


def test_a_linear_layer_that_does_not_make_the_logits_is_not_taken(images):
    class Two(Plain):
        def __init__(self):
            super().__init__()
            self.aside = nn.Linear(6, 5)

        def forward(self, images):
            logits = super().forward(images)
            self.aside(torch.zeros(len(images), 6))  # called last, and as wide
            return logits

    network = tapped(Two()).eval()
    features, logits = network.with_features(images)
    assert torch.equal(logits, network.module.out(features)) and features.any()


@pytest.mark.parametrize(("name", "width"), [("neck", 6), ("body", 8), ("body.1", 8), ("out", 6)])
def test_features_by_name(name, width, images):
    """A submodule's output, a map averaged; of the layer that makes the logits the input."""
    network = tapped(Plain(), features=name).eval()
    features, logits = network.with_features(images)
    assert features.shape == (4, width) and network.num_features == width
    assert torch.equal(logits, network(images))
    body = network.module.body(images)
    if name == "neck":
        assert torch.equal(features, network.module.neck(body.mean((2, 3))))
    if name == "body":
        assert torch.equal(features, body.mean((2, 3)))


def test_features_of_the_modules_own(images):
    class Own(Plain):
        def with_features(self, images):
            x = self.body(images).mean((2, 3))
            return x, self.out(self.drop(self.neck(x).relu()))

        def stages(self, images):
            return [self.body(images)]

    network = tapped(Own())
    assert network.num_features == 8 and network.with_features(images)[0].shape == (4, 8)
    assert network.eval().stages(images)[0].shape == (4, 8, 15, 15)
    assert tapped(Own(), features="neck").num_features == 6


def test_stages_by_name(images):
    network = tapped(Plain(), stages=["body.0", "body"]).eval()
    first, last = network.stages(images)
    assert torch.equal(first, network.module.body[0](images)) and torch.equal(last, network.module.body(images))


def test_a_trial_leaves_no_trace():
    module = Plain()
    module.body[1].eval()  # modes differ inside
    before, modes = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    generator = torch.get_rng_state()
    as_classifier(module, SHAPE, 5, "student")
    check_training(module, SHAPE, 5, 2, "student")
    assert torch.equal(generator, torch.get_rng_state())
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())


def test_a_copy_reads_itself(images):
    network = tapped(Plain()).eval()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.module.neck.bias += 1
    features, _ = other.with_features(images)
    assert not torch.equal(features, network.with_features(images)[0])
    assert torch.equal(other.module.out(features), other(images))


def test_nothing_is_kept_between_forwards(images):
    network = tapped(Plain())
    for forward in (network, network.with_features, network):
        forward(images)
        assert network._features._kept is None


@pytest.mark.parametrize("compiled", ["module", "network", "learner"])
def test_compiled(compiled, images):
    network = tapped(Plain(), stages=["body"]).eval()
    features, logits = network.with_features(images)
    maps = network.stages(images)
    learner = Both(network)
    {"module": network.module, "network": network, "learner": learner}[compiled].compile(backend="eager")
    for _ in range(2):
        assert torch.equal(network(images), logits)
        assert torch.equal(network.with_features(images)[0], features)
        assert torch.equal(network.stages(images)[0], maps[0])
        assert torch.equal(learner(images)[0], features)


def test_data_parallel(images):
    """What a loss needs passes through the wrapper's forward, and its gradients are those without it."""
    network = tapped(Plain()).eval()
    learner = Both(copy.deepcopy(network))
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        pair = nn.parallel.DistributedDataParallel(learner)(images)
        sum(value.square().sum() for value in pair).backward()
    finally:
        torch.distributed.destroy_process_group()
    sum(value.square().sum() for value in network.with_features(images)).backward()
    for weight, expected in zip(learner.parameters(), network.parameters(), strict=True):
        assert torch.equal(weight.grad, expected.grad)


def test_gradient_and_autocast(images):
    network = tapped(Plain())
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = network.with_features(images)
    assert logits.dtype == torch.bfloat16
    (features.float().square().sum() + logits.float().sum()).backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"features": "nek"}, "Plain has no submodule 'nek'; there is: neck, body, body.0, "),
        ({"stages": ["body", "layer4"]}, "Plain has no submodule 'layer4'; there is: "),
    ],
)
def test_unknown_submodule(names, sentence):
    with pytest.raises(TrainerError) as error:
        Tapped(Plain(), **names)
    assert sentence in str(error.value)


def test_features_that_cannot_be_read(images):
    scaled = Returns(lambda logits: 2 * logits)
    for read in (lambda network: network.num_features, lambda network: network.with_features(images)):
        with pytest.raises(TrainerError, match=r"say where its features are: .*; there is: plain, "):
            read(tapped(scaled))
    assert tapped(scaled, features="plain.neck").num_features == 6
    assert as_classifier(scaled, SHAPE, 5, "student")(images).shape == (4, 5)  # logits need none
    with pytest.raises(TrainerError, match=r"Tapped\(Plain\) has seen no images yet"):
        _ = Tapped(Plain()).num_features
    with pytest.raises(TrainerError, match="does not call its submodule 'extra'"):
        module = Plain()
        module.extra = nn.Linear(2, 2)
        tapped(module, features="extra")
    with pytest.raises(TrainerError, match=r"stage 0 of Plain must be a map \[N, C, H, W\], got \[4, 6\]"):
        tapped(Plain(), stages=["neck"]).stages(images)
    with pytest.raises(TrainerError, match=r"say where the maps of Plain are: .*there is: body, "):
        tapped(Plain()).stages(images)


class Output(dict):
    """As transformers return it."""


@pytest.mark.parametrize(
    ("wrap", "got"),
    [
        (lambda x: (x, x), "got a tuple of 2; wrap it in a module whose forward returns them alone"),
        (lambda x: Output(loss=0, logits=x), "got Output with loss, logits; wrap it"),
        (lambda x: x.argmax(1), r"got int64 \[2\]; wrap it"),
        (lambda x: x.long(), r"got int64 \[2, 5\]; wrap it"),
        (lambda x: x[:, :4], r"got float32 \[2, 4\]; give its last layer as many outputs"),
        (lambda x: x[:1], r"got float32 \[1, 5\]; wrap it"),
        (lambda x: None, "got NoneType; wrap it"),
        (lambda x: 1 / 0, "cannot take 2 images of 3x32x32 .* in evaluation mode: division by zero; take other"),
    ],
)
def test_no_logits(wrap, got):
    module = Returns(wrap).train()
    with pytest.raises(TrainerError, match=got) as error:
        check_logits(module, SHAPE, 5, "student")
    assert str(error.value).startswith("the student (Returns) ") and "\n" not in str(error.value)
    assert module.training and module.plain.calls == 0


def test_logits_in_evaluation_alone():
    class Auxiliary(Plain):
        def forward(self, images):
            logits = super().forward(images)
            return (logits, logits) if self.training else logits

    check_logits(Auxiliary(), SHAPE, 5, "student")
    with pytest.raises(TrainerError, match="in training mode, got a tuple of 2"):
        check_training(Auxiliary(), SHAPE, 5, 64, "student")


@pytest.mark.parametrize(
    ("name", "image_shape"), [("mobilenetv2", (1, 8, 8)), ("resnet18", (1, 8, 8)), ("vgg8", (3, 8, 8))]
)
def test_batch_normalisation_of_one_value(name, image_shape):
    network = build_network(name, image_shape, 5)
    check_training(network, image_shape, 5, 2, "student")
    with pytest.raises(TrainerError) as error:
        check_training(network, image_shape, 5, 1, "student")
    assert "cannot take 1 image of " in str(error.value)
    assert "Expected more than 1 value per channel" in str(error.value)
    assert "take a larger --batch-size (or fewer processes)" in str(error.value)
    check_training(build_network(name, (3, 64, 64), 5), (3, 64, 64), 5, 1, "student")


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Plain, "the student must be an nn.Module, got <class 'test_trainer_tapped.Plain'>"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "the student (Sequential) has lazy layers without weights"),
        (Tapped(Plain(classes=4)), "the student (Plain) must give logits, a floating-point tensor [2, 5], for 2 "),
    ],
)
def test_no_classifier(module, sentence):
    with pytest.raises(TrainerError) as error:
        as_classifier(module, SHAPE, 5, "student")
    assert sentence in str(error.value)
