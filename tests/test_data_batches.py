"""Subsets by seed, augmentation, and batches: which images a run sees, in which order, how changed."""

from dataclasses import replace
from types import SimpleNamespace

from contextlib import nullcontext
import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from accelerate import Accelerator
from data_files import pixels, write_npz, write_tree

from python_trainers.common.data import (
    Augmentation,
    Batches,
    Dataset,
    Images,
    class_splits,
    corrupt_labels,
    few_images,
    folders,
    load_dataset,
    long_tailed,
)
from python_trainers.common.data.augmentation import rotate, shift
from python_trainers.common.data.image_files import ImageFiles
from python_trainers.common.data.images import Standard
from python_trainers.common.errors import TrainerError
from python_trainers.common.metrics import accuracy
from python_trainers.common.options import DataOptions, data_configuration
from python_trainers.common.resolve import resolve_dataset

pytestmark = pytest.mark.trainers
LABELS = torch.arange(2000) % 10
EVERYTHING = Augmentation(padding=2, flip=True, rotation=15.0)


def images_of(count: int, classes: int = 10) -> Images:
    stored = torch.from_numpy(pixels(count, 3, 8, 8))
    return Images(stored, torch.arange(count) % classes, Standard.of(stored))


def dataset_of(sizes: list[int]) -> Dataset:
    """A data set with so many training images of each class."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    train = replace(images_of(len(labels)), labels=labels)
    return Dataset("made up", train, train, classes=len(sizes), augmentation=Augmentation())


def batches_of(
    images: Images, *, seed=0, rank=0, ranks=1, batch_size=8, per_epoch=40, augmentation=EVERYTHING
) -> Batches:
    place = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=ranks)
    return Batches(
        images,
        batch_size=batch_size,
        images_per_epoch=per_epoch,
        background=0.0,
        augmentation=augmentation,
        seed=seed,
        accelerator=place,
    )


@pytest.fixture(params=["small", "photographs"])
def tree(request, tmp_path):
    """A tree of image files and whether it is of photographs."""
    write_tree(tmp_path, count=12, size=(8, 8) if request.param == "small" else (120, 100))
    return tmp_path, request.param == "photographs"


def as_bytes(image: torch.Tensor) -> bytes:
    return image.numpy().tobytes()


def streamed(root, monkeypatch) -> Dataset:
    monkeypatch.setattr(folders, "RESIDENT_BYTES", 0)
    dataset = load_dataset("imagefolder", root)
    assert isinstance(dataset.train.pixels, ImageFiles)
    return dataset


def assert_same_batches(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        for tensor, expected in zip(ours, theirs, strict=True):
            assert torch.equal(tensor, expected)


def test_resident_batches_continue_from_their_state():
    batches = batches_of(images_of(30))
    list(batches)
    state = batches.state_dict()
    second = list(batches)
    other = batches_of(images_of(30), seed=1)
    other.load_state_dict(state)
    assert_same_batches(other, second)
    assert not torch.equal(next(iter(batches_of(images_of(30)))).index, second[0].index)


def test_streamed_batches_continue_from_their_state(tree, monkeypatch):
    dataset = streamed(tree[0], monkeypatch)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = batches_of(dataset.train, augmentation=dataset.augmentation)
    list(batches)
    state = batches.state_dict()
    second = list(batches)
    other = batches_of(dataset.train, augmentation=dataset.augmentation, seed=1)
    other.load_state_dict(state)
    assert_same_batches(other, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_streamed_batches_are_the_resident_ones(tmp_path, monkeypatch):
    write_tree(tmp_path, count=12)
    resident = load_dataset("imagefolder", tmp_path)
    files = streamed(tmp_path, monkeypatch)
    assert_same_batches(
        batches_of(replace(files.train, standard=resident.train.standard)),
        batches_of(resident.train),
    )
    few, of_files = few_images(resident, 10, seed=1), few_images(files, 10, seed=1)
    read = torch.stack([of_files.pixels.read(number) for number in range(10)])
    assert torch.equal(read, few.pixels) and torch.equal(of_files.labels, few.labels)


def test_photographs_are_cut_anew_each_epoch_and_flipped(tmp_path, monkeypatch):
    write_tree(tmp_path, count=1, size=(120, 100))
    dataset = streamed(tmp_path, monkeypatch)
    augmentation = Augmentation(resized_crop=True)
    batches = batches_of(dataset.train, augmentation=augmentation, batch_size=2, per_epoch=2)
    epochs = [next(iter(batches)) for _ in range(2)]
    assert epochs[0].pixels.shape == (2, 3, 224, 224)
    one, other = (batch.pixels[batch.index.argsort()] for batch in epochs)
    assert not torch.equal(one, other)


def test_damaged_file_of_a_stream_is_one_sentence(tmp_path, monkeypatch):
    write_tree(tmp_path, count=4)
    dataset = streamed(tmp_path, monkeypatch)
    (tmp_path / "train" / "dog" / "2.png").write_bytes(b"damaged")
    with pytest.raises(TrainerError, match="image .*dog/2.png cannot be read .*; replace") as caught:
        list(batches_of(dataset.train, batch_size=4, per_epoch=8))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("keep_in_files", [False, True])
def test_two_ranks_share_every_batch(keep_in_files, tmp_path, monkeypatch):
    write_tree(tmp_path, count=15)
    dataset = streamed(tmp_path, monkeypatch) if keep_in_files else load_dataset("imagefolder", tmp_path)
    whole = list(batches_of(dataset.train))
    halves = [list(batches_of(dataset.train, rank=rank, ranks=2)) for rank in (0, 1)]
    assert len(whole) == len(halves[0]) == len(halves[1]) == 5
    for batch, first, second in zip(whole, *halves, strict=True):
        assert len(first.index) == len(second.index) == 4
        for tensor, even, odd in zip(batch, first, second, strict=True):
            assert torch.equal(tensor[0::2], even) and torch.equal(tensor[1::2], odd)


def test_index_tells_the_image():
    images = images_of(30)
    for batch in batches_of(images, augmentation=Augmentation()):
        assert torch.equal(batch.pixels, images.standardise(images.pixels[batch.index]))
        assert torch.equal(batch.labels, images.labels[batch.index])
    seen = torch.cat([batch.index for batch in batches_of(images, batch_size=10, per_epoch=60)])
    assert seen[:30].sort().values.tolist() == seen[30:].sort().values.tolist() == list(range(30))


def test_shift_takes_every_window_of_the_padded_image():
    image = torch.arange(1.0, 17).view(1, 1, 4, 4)
    down, right = torch.cartesian_prod(torch.arange(5), torch.arange(5)).unbind(1)
    shifted = shift(image.expand(25, 1, 4, 4), down, right, 2, background=-3.0)
    padded = torch.full((8, 8), -3.0)
    padded[2:6, 2:6] = image
    for window, y, x in zip(shifted, down, right, strict=True):
        assert torch.equal(window[0], padded[y : y + 4, x : x + 4])


@pytest.mark.parametrize("size", [(6, 6), (5, 5)])
def test_rotation_by_right_angles(size):
    image = torch.from_numpy(pixels(1, 3, *size)).expand(4, -1, -1, -1)
    turned = rotate(image, torch.tensor([0.0, 90.0, 180.0, -90.0]), background=0.0)
    for quarters, result in zip((0, 1, 2, -1), turned, strict=True):
        assert torch.equal(result, image[0].float().rot90(quarters, (1, 2)))


def test_rotation_keeps_proportions_and_fills_with_the_background():
    image = torch.zeros(1, 1, 9, 21)
    image[..., 4, 6:15] = 1.0  # a bar of 9 pixels, as long as the image is high
    turned = rotate(image, torch.tensor([90.0]), background=0.0)
    assert torch.equal(turned[0, 0].nonzero(), torch.stack([torch.arange(9), torch.full((9,), 10)], dim=1))
    corners = rotate(torch.full((1, 1, 8, 8), 2.0), torch.tensor([45.0]), background=-1.0)[0, 0]
    assert corners[0, 0] == corners[7, 7] == -1 and corners[4, 4] == 2


def test_digits_are_drawn_in_the_order_the_published_figures_rest_on():
    dataset = load_dataset("digits", None)
    recipe = dataset.augmentation
    batches = batches_of(dataset.train, seed=3, batch_size=50, per_epoch=1000, augmentation=recipe)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(1000, generator=generator)
    down, right = torch.randint(0, 3, (2, 1000), generator=generator)
    first = next(iter(batches))
    assert torch.equal(first.index, order[:50])
    for image, index, y, x in zip(first.pixels, order, down, right, strict=False):
        padded = torch.nn.functional.pad(dataset.train.pixels[index], (1, 1, 1, 1))
        assert torch.equal(image[:, 1:-1, 1:-1], padded[:, y + 1 : y + 7, x + 1 : x + 7])


def test_draws_cover_their_ranges():
    generator = torch.Generator().manual_seed(0)
    draws = EVERYTHING.draw(4000, generator)
    assert set(draws["down"].tolist()) == set(draws["right"].tolist()) == set(range(5))
    assert 0.45 < draws["flipped"].float().mean() < 0.55
    assert -15 <= draws["degrees"].min() < -14.5 and 14.5 < draws["degrees"].max() <= 15
    assert Augmentation().draw(3, generator) == {}


def test_flip():
    image = torch.from_numpy(pixels(2, 3, 4, 4))
    flipped = Augmentation(flip=True).apply(image, {"flipped": torch.tensor([True, False])}, 0.0)
    assert torch.equal(flipped[0], image[0].flip(2)) and torch.equal(flipped[1], image[1])


@pytest.mark.parametrize("ranks", [1, 2])
def test_accuracy_counts_every_image_once(ranks, tmp_path, monkeypatch):
    write_tree(tmp_path, count=7)
    resident = load_dataset("imagefolder", tmp_path).test
    files = replace(streamed(tmp_path, monkeypatch).test, standard=resident.standard)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 2))
    expected = (model(resident.standardise(resident.pixels)).argmax(1) == resident.labels).sum().item()
    for images in (resident, files):
        correct = []
        for rank in range(ranks):
            place = SimpleNamespace(
                device=torch.device("cpu"),
                process_index=rank,
                num_processes=ranks,
                autocast=nullcontext,
                reduce=lambda count, reduction: correct.append(count) or count,
            )
            accuracy(model, images, place, batch_size=4)
        assert sum(correct).item() == expected
    assert accuracy(model, resident, Accelerator()) == pytest.approx(expected / 14)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45])
def test_corrupted_labels(share):
    noisy = corrupt_labels(LABELS, share, classes=10, seed=0)
    wrong = noisy != LABELS
    assert LABELS[wrong].bincount(minlength=10).tolist() == [round(200 * share)] * 10
    assert torch.equal(noisy, corrupt_labels(LABELS, share, classes=10, seed=0))
    if share:
        assert not torch.equal(noisy, corrupt_labels(LABELS, share, classes=10, seed=1))


def test_wrong_labels_are_uniform_over_the_other_classes():
    labels = torch.zeros(9000, dtype=torch.int64)
    counts = corrupt_labels(labels, 0.5, classes=10, seed=0).bincount(minlength=10)[1:]
    # chi-square with 8 degrees of freedom exceeds 26.1 once in a thousand
    assert ((counts - 500) ** 2 / 500).sum() < 26.1


def test_long_tail_has_the_published_profile():
    labels = torch.arange(50_000) % 10
    index = long_tailed(labels, 100, classes=10, seed=0)
    # CIFAR-10-LT at ratio 100, Cao et al. 2019
    assert labels[index].bincount().tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert torch.equal(index, index.unique())
    assert torch.equal(index, long_tailed(labels, 100, classes=10, seed=0))
    assert not torch.equal(index, long_tailed(labels, 100, classes=10, seed=1))
    assert len(long_tailed(labels, 1, classes=10, seed=0)) == 50_000


def test_long_tail_loses_no_image_to_rounding():
    labels = torch.arange(6 * 243) % 6
    # 243 * 243 ** (-2 / 5) is 26.999999999999996 in float64
    assert labels[long_tailed(labels, 243, classes=6, seed=0)].bincount().tolist() == [243, 81, 27, 9, 3, 1]


def test_class_splits():
    splits = class_splits(10, 3, seed=0)
    assert sorted(len(part) for part in splits) == [3, 3, 4]
    assert sorted(label for part in splits for label in part) == list(range(10))
    assert splits == class_splits(10, 3, seed=0) != class_splits(10, 3, seed=1)
    with pytest.raises(TrainerError, match="tasks must be 1 to 10, the number of classes, got 11"):
        class_splits(10, 11, seed=0)


def test_restricted_data_set_is_relabelled():
    dataset = load_dataset("digits", None)
    task = dataset.restricted([7, 2])
    for images, whole in ((task.train, dataset.train), (task.test, dataset.test)):
        assert len(images) == ((whole.labels == 7) | (whole.labels == 2)).sum()
        assert torch.equal(images.pixels[images.labels == 0], whole.pixels[whole.labels == 7])
        assert torch.equal(images.pixels[images.labels == 1], whole.pixels[whole.labels == 2])
    assert (task.classes, task.name) == (2, "digits, classes 7 2")


def test_options_apply_in_order_and_leave_the_test_images_alone():
    options = DataOptions(imbalance=5.0, noisy_labels=0.25, train_fraction=0.5)
    dataset, images = resolve_dataset(options, seed=3)
    whole = load_dataset("digits", None)
    assert torch.equal(dataset.test.labels, whole.test.labels) and dataset.test.clean_labels is None
    sizes = dataset.train.clean_labels.bincount().tolist()
    largest = whole.train.labels.bincount().min()
    assert sizes[0] == largest and sizes[9] == largest // 5
    wrong = dataset.train.clean_labels[dataset.train.labels != dataset.train.clean_labels].bincount()
    assert wrong.tolist() == [round(0.25 * size) for size in sizes]
    assert len(images) == len(images.clean_labels) == round(len(dataset.train) / 2)
    true_label = dict(zip(map(as_bytes, whole.train.pixels), whole.train.labels.tolist(), strict=True))
    assert [true_label[as_bytes(image)] for image in images.pixels] == images.clean_labels.tolist()
    again = resolve_dataset(options, seed=3)[1]
    assert torch.equal(images.pixels, again.pixels) and torch.equal(images.labels, again.labels)
    assert not torch.equal(images.pixels, resolve_dataset(options, seed=4)[1].pixels)


def test_plain_options_change_nothing():
    dataset, images = resolve_dataset(DataOptions(), seed=0)
    assert images is dataset.train and images.clean_labels is None and len(images) == 1000
    _, few = resolve_dataset(DataOptions(train_images=50), seed=7)
    assert torch.equal(few.pixels, few_images(dataset, 50, seed=7).pixels)


def test_configuration_names_the_data(tmp_path):
    write_npz(tmp_path / "one.npz")
    options = DataOptions(dataset="npz", data_root=tmp_path / "one.npz", train_images=6, noisy_labels=0.5)
    dataset, _ = resolve_dataset(options, seed=0)
    configuration = data_configuration(options, dataset.name)
    assert configuration == {
        "dataset": dataset.name,
        "validation": 0.0,
        "train_images": 6,
        "train_fraction": None,
        "epoch_of": "split",
        "imbalance": 1.0,
        "noisy_labels": 0.5,
    }
    assert dataset.name.startswith("npz ") and dataset.name == load_dataset("npz", tmp_path / "one.npz").name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"noisy_labels": 1.0}, "--noisy-labels must be a share >= 0 and < 1, got 1.0"),
        ({"noisy_labels": -0.1}, "--noisy-labels must be a share >= 0 and < 1, got -0.1"),
        ({"noisy_labels": float("nan")}, "--noisy-labels must be a share >= 0 and < 1, got nan"),
        ({"imbalance": 0.5}, "--imbalance must be 1 .none. to 97, .* smallest class, got 0.5"),
        ({"imbalance": 98.0}, "--imbalance must be 1 .none. to 97, .* smallest class, got 98.0"),
        ({"train_fraction": 0.0}, "--train-fraction must be 0.01 .* to 0.99, or 1 .all 1000 .* got 0.0"),
        ({"train_fraction": 1.1}, "--train-fraction must be 0.01 .* got 1.1"),
        ({"train_fraction": float("nan")}, "--train-fraction must be 0.01 .* got nan"),
        ({"train_images": 9}, "--train-images must be 10 .one per class. to 990, or 1000 .all., got 9"),
        ({"train_images": 50, "train_fraction": 0.1}, "--train-fraction, not both, got 50 and 0.1"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(TrainerError, match=sentence):
        resolve_dataset(DataOptions(**options), seed=0)


def test_few_images_of_rare_classes():
    with pytest.raises(TrainerError, match="needs 2 images of every class .*, class 1 has 1; take all"):
        few_images(dataset_of([20, 1]), 5, seed=0)
    with pytest.raises(TrainerError, match="--train-images 4 of 103 leaves 1 of 2 classes .*smallest has 3"):
        few_images(dataset_of([100, 3]), 4, seed=0)
