"""The user's own Datasets, DataLoaders and augmentation in place of those by name."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from data_files import pixels, write_tree
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from python_trainers.common.data import (
    Augmentation,
    Batches,
    augmented_by,
    few_images,
    folders,
    given_dataset,
    load_dataset,
    require_numbers,
    source_of,
)
from python_trainers.common.data.images import Standard
from python_trainers.common.data.rotations import FourRotations
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers
PLACE = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
BYTES = torch.from_numpy(pixels(20, 3, 8, 8))
FLOATS = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 4


class Pairs(Dataset):
    """Images and labels in lists, each as somebody may hold them."""

    def __init__(self, images, labels=LABELS.tolist(), change=lambda image: image):
        self.images, self.labels_, self.change = images, labels, change

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.change(self.images[number]), self.labels_[number]


def drawn_by_all(image):
    """A random transform that draws from every generator there is."""
    return image + random.random() + float(np.random.rand()) + torch.rand(())


def noise(image):
    """The same for bytes."""
    return (image + int(256 * random.random()) + int(np.random.randint(256)) + torch.randint(256, ())).to(torch.uint8)


def batches_of(dataset, *, rank=0, ranks=1, size=6, workers=2, seed=0, augmentation=None):
    place = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=ranks)
    return Batches(
        replace(dataset.train, workers=workers),
        batch_size=size,
        images_per_epoch=24,
        background=0.0,
        augmentation=augmentation or dataset.augmentation,
        seed=seed,
        accelerator=place,
    )


def epochs(batches, count=2):
    return [[torch.cat(parts) for parts in zip(*batches, strict=True)] for _ in range(count)]


def assert_equal(one, other):
    for ours, theirs in zip(one, other, strict=True):
        for tensor, expected in zip(ours, theirs, strict=True):
            assert torch.equal(tensor, expected)


@pytest.mark.parametrize("hold", [lambda image: image, v2.ToPILImage()], ids=["tensors", "PIL"])
def test_bytes_are_standardised_by_the_training_images(hold):
    train, test = Pairs([hold(image) for image in BYTES]), Pairs([hold(image) for image in BYTES[:8]])
    dataset = given_dataset((train, test), workers=0)
    assert (dataset.classes, dataset.image_shape, len(dataset.train), len(dataset.test)) == (4, (3, 8, 8), 20, 8)
    assert torch.equal(dataset.train.labels, LABELS)
    standard = Standard.of(BYTES)
    for part in (dataset.train, dataset.test):
        ready = torch.cat([batch for batch, _ in part.batches(3, PLACE)])
        assert torch.equal(ready, (BYTES[: len(part)] - standard.mean) / standard.std)


def test_floats_are_taken_as_they_are():
    dataset = given_dataset((TensorDataset(FLOATS.double(), LABELS), TensorDataset(FLOATS, LABELS)), workers=0)
    (batch,) = dataset.train.batches(20, PLACE)
    assert torch.equal(batch[0], FLOATS) and torch.equal(batch[1], LABELS)
    assert dataset.augmentation == Augmentation()
    batch = next(iter(batches_of(dataset, workers=0)))
    assert torch.equal(batch.pixels, FLOATS[batch.index]) and torch.equal(batch.labels, LABELS[batch.index])


def test_grey_pictures_have_one_channel():
    train = Pairs([Image.fromarray(image) for image in pixels(20, 8, 8).astype(np.uint16) * 257])
    dataset = given_dataset((train, train), workers=0)
    assert dataset.image_shape == (1, 8, 8)
    assert torch.equal(dataset.train.pixels.read(3)[0], torch.from_numpy(pixels(20, 8, 8)[3]))


def test_listed_labels_are_used_if_the_items_agree():
    class Listed(Pairs):
        reads = 0

        def __init__(self, targets):
            super().__init__(FLOATS)
            self.targets = targets

        def __getitem__(self, number):
            Listed.reads += 1
            return super().__getitem__(number)

    for data in (Listed(LABELS.tolist()), Subset(Listed(LABELS.tolist()), range(4, 20))):
        Listed.reads = 0
        dataset = given_dataset((data, data), workers=0)
        assert Listed.reads < 2 * 16 and len(dataset.train) == len(data)
        assert dataset.train.labels.tolist() == [label for _, label in data]
    dataset = given_dataset((Listed((LABELS + 1).tolist()), Listed(LABELS.tolist())), workers=0)
    assert torch.equal(dataset.train.labels, LABELS)  # what the items say


@pytest.mark.parametrize("ranks", [1, 2])
def test_random_transforms_depend_on_the_seed_alone(ranks):
    data = Pairs(FLOATS, change=drawn_by_all)
    dataset = given_dataset((data, data), workers=0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    whole = epochs(batches_of(dataset, workers=0))
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    for rank in range(ranks):
        random.seed(rank)
        mine = epochs(batches_of(dataset, rank=rank, ranks=ranks, workers=rank + 1))
        assert_equal(mine, [[part[rank::ranks] for part in parts] for parts in whole])
    added = torch.cat([(shown - FLOATS[index])[:, 0, 0, 0] for shown, _, index in whole])
    assert len(added.unique()) == len(added) == 48  # though every image comes more than once
    assert not torch.equal(epochs(batches_of(dataset, workers=0, seed=1), 1)[0][0], whole[0][0])


def test_random_transforms_continue_from_the_state():
    data = Pairs(FLOATS, change=drawn_by_all)
    dataset = given_dataset((data, data), workers=0)
    first = batches_of(dataset)
    epochs(first, 1)
    state = first.state_dict()
    other = batches_of(dataset, seed=1, workers=0)
    other.load_state_dict(state)
    assert_equal(epochs(other), epochs(first))


def test_random_test_images_are_always_the_same():
    data = Pairs(FLOATS, change=drawn_by_all)
    dataset = given_dataset((data, data), workers=0)
    tests = [(7, dataset.test), (4, dataset.test), (4, dataset.read_by(2).test)]
    passes = [torch.cat([batch for batch, _ in images.batches(size, PLACE)]) for size, images in tests]
    assert torch.equal(passes[0], passes[1]) and torch.equal(passes[0], passes[2])


def test_small_batches_in_a_row_are_the_large_batch():
    data = Pairs(FLOATS, change=drawn_by_all)
    dataset = given_dataset((data, data), workers=0)
    assert_equal(epochs(batches_of(dataset, size=12, workers=0)), epochs(batches_of(dataset, size=4, workers=0)))


def test_augmentation_is_the_same_in_memory_and_in_files(tmp_path, monkeypatch):
    write_tree(tmp_path, count=10)
    resident = load_dataset("imagefolder", tmp_path)
    monkeypatch.setattr(folders, "RESIDENT_BYTES", 0)
    files = load_dataset("imagefolder", tmp_path)
    files = replace(files, train=replace(files.train, standard=resident.train.standard))
    for augmentation in (augmented_by(noise), FourRotations.of(replace(augmented_by(noise), padding=1, flip=True))):
        whole = epochs(batches_of(resident, augmentation=augmentation, workers=0))
        assert_equal(epochs(batches_of(files, augmentation=augmentation)), whole)
        assert_equal(epochs(batches_of(resident, augmentation=augmentation)), whole)


def test_augmentation_comes_before_the_rotations():
    dataset = given_dataset((TensorDataset(BYTES, LABELS), TensorDataset(BYTES, LABELS)), noise, workers=0)
    turned = epochs(batches_of(dataset, augmentation=FourRotations.of(dataset.augmentation), workers=0), 1)[0][0]
    plain = epochs(batches_of(dataset, workers=0), 1)[0][0]
    assert torch.equal(turned[0::4], plain)
    for quarter in range(4):
        assert torch.equal(turned[quarter::4], plain.rot90(quarter, (2, 3)))


def test_transforms_of_torchvision():
    changes = [v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4), v2.RandAugment()]
    dataset = given_dataset((TensorDataset(BYTES, LABELS), TensorDataset(BYTES, LABELS)), v2.Compose(changes))
    assert_equal(epochs(batches_of(dataset)), epochs(batches_of(dataset, workers=0)))
    digits = load_dataset("digits", None)
    digits = replace(digits, augmentation=augmented_by(v2.RandomRotation(10)))
    assert not torch.equal(*(pixels for pixels, *_ in epochs(batches_of(digits, workers=0))))


def test_augmentation_in_place_leaves_the_data_alone():
    data = TensorDataset(FLOATS.clone(), LABELS)
    dataset = given_dataset((data, data), lambda image: image.zero_(), workers=0)
    assert not next(iter(batches_of(dataset, workers=0))).pixels.any()
    assert torch.equal(data.tensors[0], FLOATS)
    images = replace(dataset.train, pixels=data.tensors[0])
    assert not next(iter(batches_of(replace(dataset, train=images), workers=0))).pixels.any()
    assert torch.equal(data.tensors[0], FLOATS)


def test_augmentation_sees_whole_photographs(tmp_path):
    write_tree(tmp_path, count=2, size=(120, 100))
    dataset = load_dataset("imagefolder", tmp_path)
    seen = []

    def crop(image):
        seen.append(image.shape)
        return v2.functional.resize(image, [224, 224])

    batch = next(iter(batches_of(dataset, augmentation=augmented_by(crop), workers=0)))
    assert set(seen) == {(3, 100, 120)} and batch.pixels.shape == (6, 3, 224, 224)


def test_name_tells_the_data(tmp_path):
    def name(images, labels=LABELS, kind=TensorDataset):
        return given_dataset((kind(images, labels), TensorDataset(FLOATS, LABELS)), workers=0).name

    assert name(FLOATS) == name(FLOATS.clone()) and name(FLOATS).startswith("TensorDataset 20 ")
    others = [name(FLOATS + 1), name(FLOATS, LABELS.flip(0)), name(FLOATS[:16], LABELS[:16])]
    others.append(name(FLOATS, LABELS.tolist(), kind=Pairs))
    assert len({name(FLOATS), *others}) == 5


def test_few_of_given_images():
    data = TensorDataset(FLOATS, LABELS)
    dataset = given_dataset((data, data), workers=0)
    few = few_images(dataset, 8, seed=0)
    assert few.labels.bincount().tolist() == [2] * 4
    (batch,) = few.batches(8, PLACE)
    assert all((image == FLOATS[LABELS == label]).flatten(1).all(1).any() for image, label in zip(*batch, strict=True))


def loader(images=FLOATS, labels=LABELS, **options):
    return DataLoader(TensorDataset(images, labels), batch_size=6, **options)


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
def test_loaders_are_gone_through_without_a_trace(own):
    generator = torch.Generator().manual_seed(3) if own else None
    train = loader(BYTES, shuffle=True, generator=generator)
    before = torch.get_rng_state(), generator and generator.get_state()
    dataset = given_dataset((train, loader(BYTES[:9], LABELS[:9])))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert not own or torch.equal(generator.get_state(), before[1])
    assert (dataset.classes, dataset.image_shape, len(dataset.train), len(dataset.test)) == (4, (3, 8, 8), 20, 9)
    standard = Standard.of(BYTES)
    for rank in (0, 1):
        place = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=2)
        ready = torch.cat([batch for batch, _ in dataset.test.batches(4, place)])
        mine = torch.cat([part[rank::2] for part in BYTES[:9].split(6)])
        assert torch.equal(ready, (mine - standard.mean) / standard.std)
    source = source_of(dataset.train, batch_size=6, augmentation=dataset.augmentation, accelerator=PLACE)
    batch = next(iter(source))
    assert len(source) == 4 and batch.index is None and len(batch.pixels) == 6
    stored = batch.pixels * standard.std + standard.mean
    assert all(((stored[row] - BYTES).abs() < 1e-3).flatten(1).all(1).any() for row in range(6))


def test_loader_has_no_single_images():
    dataset = given_dataset((loader(), loader()))
    sentence = "the training data are a DataLoader, which gives batches; .* give the Dataset itself"
    for needs in (lambda images: images.labels, lambda images: images.subset(LABELS), lambda images: images.pixels):
        with pytest.raises(TrainerError, match=sentence):
            needs(dataset.train)
    with pytest.raises(TrainerError, match=sentence):
        few_images(dataset, 8, seed=0)
    assert few_images(dataset, None, seed=0) is dataset.train
    with pytest.raises(TrainerError, match="crd's memory must know each image by its number, the training data are"):
        require_numbers(dataset.train, "crd's memory")


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (Pairs([], []), "the training data must have an item, the Pairs is empty"),
        (list(FLOATS), "item 0 of the training data must be a pair .image, label., got Tensor float32 .3, 8, 8."),
        (Pairs(FLOATS.flatten(1)), r"image of item 0 .* must be a float or uint8 tensor .*, got Tensor float32 .192."),
        (Pairs(FLOATS.long()), r"image of item 0 .* must be a float or uint8 tensor .*, got Tensor int64"),
        (Pairs(FLOATS.numpy()), r"image of item 0 .* or a PIL image, got ndarray float32 .3, 8, 8."),
        (
            Pairs([*FLOATS[:7], FLOATS[7, :, :6], *FLOATS[8:]]),
            r"of one shape and type, got torch.float32 .3, 6, 8. for item 7, .*3, 8, 8. for item 0; resize",
        ),
        (Pairs([Image.fromarray(np.full((8, 8), 7.0, np.float32))] * 20), "image of item 0 .* cannot be used .float"),
        (Pairs(FLOATS, ["cat"] * 20), "label of item 0 .* must be an integer, the class, got str 'cat'"),
        (Pairs(FLOATS, [0.5] * 20), "label of item 0 .* must be an integer, the class, got float 0.5"),
        (Pairs(FLOATS, [True] * 20), "label of item 0 .* must be an integer, the class, got bool"),
        (Pairs(FLOATS, (LABELS - 1).tolist()), "training labels must be 0, 1, 2, ..., got -1"),
        (Pairs(FLOATS, (LABELS + (LABELS == 3)).tolist()), "the same classes, got 4 in the training .* 3 in the test"),
        (Pairs(FLOATS, (torch.arange(20) % 5).tolist()), "the same classes, got 4 in the training split alone"),
        (Pairs(FLOATS[:, :, :6]), r"of one type and shape, got torch.float32 .3, 6, 8. and torch.float32 .3, 8, 8."),
        (Pairs(BYTES), r"of one type and shape, got torch.uint8 .3, 8, 8. and torch.float32 .3, 8, 8."),
        (iter(FLOATS), "the training data must be a map-style Dataset .* or a DataLoader, got"),
        (DataLoader(FLOATS), "batch 0 of the training data must be a pair .images, labels., got Tensor float32"),
        (loader(labels=LABELS / 2), "labels of batch 0 .* must be 6 integers, one for each image, got Tensor float32"),
        (loader(labels=LABELS[:, None]), "labels of batch 0 .* must be 6 integers, .* got Tensor int64 .6, 1."),
        (loader(labels=LABELS - 1), "labels of the training data must be 0, 1, 2, ..., got -1"),
        (loader(FLOATS.flatten(2)), "images of batch 0 .* must be a float or uint8 tensor .B, .*got Tensor float32"),
        (loader(FLOATS[:0], LABELS[:0]), "the training data must have a batch, the DataLoader is empty"),
        (loader(labels=torch.arange(20) % 3), "the same classes, got 3 in the test split alone"),
    ],
)
def test_unusable_data_are_refused(train, sentence):
    with pytest.raises(TrainerError, match=sentence) as caught:
        given_dataset((train, TensorDataset(FLOATS, LABELS)), workers=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [TensorDataset(FLOATS, LABELS), (loader(),)])
def test_one_split_is_refused(given):
    with pytest.raises(TrainerError, match=r"dataset must be .train, test., two Datasets or DataLoaders, got t|T"):
        given_dataset(given)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("augmentation", "got"),
    [
        (v2.ToDtype(torch.float32, scale=True), "got torch.float32 .3, 8, 8. of one .3, 8, 8."),
        (v2.CenterCrop(6), "got torch.uint8 .3, 6, 6. of one"),
        (v2.ToPILImage(), "got Image of one"),
    ],
)
def test_augmentation_that_gives_other_images(augmentation, got, workers):
    data = TensorDataset(BYTES, LABELS)
    dataset = given_dataset((data, data), augmentation, workers=0)
    sentence = r"must return an image torch.uint8 .3, 8, 8. .standardization follows it., " + got
    with pytest.raises(TrainerError, match=sentence):
        next(iter(batches_of(dataset, workers=workers)))


def test_augmentation_that_cannot_be():
    with pytest.raises(TrainerError, match="augmentation must be a function of an image .*, got int"):
        augmented_by(3)
    dataset = given_dataset((loader(), loader()), noise)
    with pytest.raises(TrainerError, match="changes single images, the training data are a DataLoader: put it into"):
        source_of(dataset.train, augmentation=dataset.augmentation, accelerator=PLACE)


def test_augmentation_has_a_name():
    assert Augmentation(flip=True).given is None
    assert augmented_by(lambda image: image).given == "<function test_augmentation_has_a_name.<locals>.<lambda>>"
    name = augmented_by(v2.Compose([v2.RandomRotation(10), v2.RandomHorizontalFlip()])).given
    assert name.startswith("Compose( RandomRotation(degrees=[-10.0, 10.0]") and "\n" not in name
