"""Anybody's DataLoader as a source, labelled beside unlabelled batches, and streams of tasks."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from python_trainers.common.data import Augmentation, Batches, Images, Joined, Loader, Stream
from python_trainers.common.data.rotations import FourRotations
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers
IMAGES = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


class Noisy(TensorDataset):
    """Its transform draws from every generator there is."""

    def __getitem__(self, number):
        image, label = super().__getitem__(number)
        return image + random.random() + float(np.random.rand()) + torch.rand(()), label


def source(rank=0, ranks=1, size=8, data=Noisy, augmentation=None, **options) -> Loader:
    place = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=ranks)
    loader = DataLoader(data(IMAGES, LABELS), batch_size=size, shuffle=True, **options)
    return Loader(loader, place, augmentation=augmentation or Augmentation())


def epoch(source) -> list[torch.Tensor]:
    pixels, labels, index = zip(*source, strict=True)
    assert set(index) == {None}
    return [torch.cat(pixels), torch.cat(labels)]


def assert_equal(one, other):
    for tensor, expected in zip(one, other, strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
def test_continued_loader_gives_the_same_batches(own, workers):
    def options(seed):
        return {"num_workers": workers, "generator": torch.Generator().manual_seed(seed) if own else None}

    torch.manual_seed(1)
    first = source(**options(1))
    epoch(first)
    saved = first.state_dict(), torch.get_rng_state()  # a run saves the second
    expected = [epoch(first) for _ in range(2)]
    random.seed(7), np.random.seed(7)  # of another process
    other = source(**options(2))
    torch.set_rng_state(saved[1])
    other.load_state_dict(saved[0])
    for batches in expected:
        assert_equal(epoch(other), batches)
    assert not torch.equal(expected[0][0], expected[1][0])


def test_processes_share_every_batch():
    torch.manual_seed(1)
    whole = epoch(source(data=TensorDataset))
    for rank in range(2):
        torch.manual_seed(1)
        mine = source(rank, 2, data=TensorDataset)
        assert len(mine) == 3
        assert_equal(epoch(mine), [part[rank::2] for part in whole])


def test_whole_batches_can_be_augmented():
    torch.manual_seed(1)
    plain = epoch(source(data=TensorDataset))
    torch.manual_seed(1)
    turned = epoch(source(data=TensorDataset, augmentation=FourRotations()))
    assert torch.equal(turned[0][0::4], plain[0]) and torch.equal(turned[0][2::4], plain[0].rot90(2, (2, 3)))


class Unsized(IterableDataset):
    def __iter__(self):
        yield from zip(IMAGES, LABELS, strict=True)


class Sized(Unsized):
    def __len__(self):
        return 24


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda place: Loader(DataLoader(Unsized()), place), "a DataLoader to train from must have a length"),
        (lambda place: Loader(DataLoader(Sized()), place), "2 processes need a DataLoader .* map-style .* one of Sized"),
        (lambda place: next(iter(source(0, 2, size=3))), "must be a multiple of 2 processes, got one of 3; choose"),
    ],
)
def test_loader_that_cannot_be_shared(make, sentence):
    with pytest.raises(TrainerError, match=sentence):
        make(SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=2))


def batches(size: int, per_epoch: int, seed: int = 0) -> Batches:
    place = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    return Batches(
        Images(IMAGES, LABELS),
        batch_size=size,
        images_per_epoch=per_epoch,
        background=0.0,
        seed=seed,
        accelerator=place,
    )


def test_joined_batches():
    def joined():
        return Joined(batches(4, 12), batches(8, 48, seed=1), ratio=2)

    both = joined()
    assert len(both) == 3
    for pair, labelled in zip(list(both), batches(4, 12), strict=True):
        assert_equal(pair.labelled, labelled)
        assert pair.unlabelled.pixels.shape == (16, 1, 4, 4)
    assert_equal(pair.unlabelled.index, torch.cat([batch.index for batch in batches(8, 48, seed=1)])[-16:])
    state = both.state_dict()
    expected = [part for pair in both for batch in pair for part in batch]
    other = joined()
    other.load_state_dict(state)
    assert_equal([part for pair in other for batch in pair for part in batch], expected)


@pytest.mark.parametrize(("per_epoch", "ratio", "got"), [(40, 2, 5), (0, 0, 6)])
def test_joined_batches_end_together(per_epoch, ratio, got):
    sentence = f"unlabelled batches must be {ratio} .a ratio >= 1. times the 3 labelled ones, got {got}"
    with pytest.raises(TrainerError, match=sentence):
        Joined(batches(4, 12), batches(8, per_epoch or 48), ratio)


def test_stream_gives_one_task_after_another():
    def stream():
        return Stream([batches(4, 8, seed=1), batches(4, 12, seed=2), batches(6, 12, seed=3)])

    tasks = stream()
    sizes, seen = [], []
    for number in range(3):
        assert tasks.task == number
        sizes.append(len(tasks))
        seen.append([batch.index for batch in tasks])
    assert sizes == [len(indices) for indices in seen] == [2, 3, 2]
    assert_equal(seen[1], [batch.index for batch in batches(4, 12, seed=2)])
    with pytest.raises(TrainerError, match="the stream has 3 tasks, all of them are done"):
        next(iter(tasks))

    first, other = stream(), stream()
    list(first)
    other.load_state_dict(first.state_dict())
    assert other.task == 1
    assert_equal([batch.index for batch in other], seen[1])
    with pytest.raises(TrainerError, match="a stream must have a task, got none"):
        Stream([])
