"""Sources of batches: what they promise to a loop that accumulates gradients, stops and continues."""

import gc
import os
from types import SimpleNamespace

import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from data_files import pixels

from python_trainers.common.data import Augmentation, Batches, Images
from python_trainers.common.data.images import Standard
from python_trainers.common.data.workers import Workers
from python_trainers.common.data.rotations import FourRotations

pytestmark = pytest.mark.trainers


def place(rank: int = 0, ranks: int = 1) -> SimpleNamespace:
    """What the sources want to know of an accelerator."""
    return SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=ranks)


def batches(
    *, size=12, count=30, images_per_epoch=48, rank=0, ranks=1, seed=0, augmentation=None, **options
) -> Batches:
    stored = torch.from_numpy(pixels(count, 3, 8, 8))
    return Batches(
        Images(stored, torch.arange(count) % 5, Standard.of(stored)),
        batch_size=size,
        images_per_epoch=images_per_epoch,
        background=0.0,
        augmentation=augmentation or Augmentation(padding=2, flip=True, rotation=15.0),
        seed=seed,
        accelerator=place(rank, ranks),
        **options,
    )


def joined(parts):
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


@pytest.mark.parametrize("augmentation", [None, FourRotations(padding=2, flip=True)], ids=["plain", "rotated"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("parts", [2, 3])
def test_small_batches_in_a_row_are_the_large_batch(parts, ranks, augmentation):
    for rank in range(ranks):
        large = batches(rank=rank, ranks=ranks, augmentation=augmentation)
        small = batches(size=12 // parts, rank=rank, ranks=ranks, augmentation=augmentation)
        for _ in range(2):  # epochs
            whole, pieces = list(large), list(small)
            assert len(pieces) == parts * len(whole) == parts * 4
            for step, batch in enumerate(whole):
                for tensor, expected in zip(joined(pieces[step * parts : (step + 1) * parts]), batch, strict=True):
                    assert torch.equal(tensor, expected)


def test_memory_format_changes_no_value():
    for batch, expected in zip(batches(channels_last=True), batches(), strict=True):
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        assert expected.pixels.is_contiguous()
        assert torch.equal(batch.pixels, expected.pixels)


def process(number: int) -> torch.Tensor:
    """Which process reads, in the place of an image."""
    return torch.tensor([os.getpid(), number])


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("held_by", ["a name", "a cycle"])
def test_worker_processes_live_as_long_as_their_owner(held_by):
    owner = SimpleNamespace(workers=Workers(process, 2))
    if held_by == "a cycle":
        owner.itself = owner
    seen = [torch.stack(list(owner.workers.map(range(6)))) for _ in range(3)]
    assert all(results[:, 1].tolist() == list(range(6)) for results in seen)
    pids = set(torch.cat(seen)[:, 0].tolist())
    assert len(pids) == 2 and os.getpid() not in pids
    half = owner.workers.map(range(6))
    assert next(half)[1] == 0
    assert [int(number) for _, number in owner.workers.map(range(3))] == [0, 1, 2]  # while the other goes on
    assert [int(number) for _, number in half] == [1, 2, 3, 4, 5]
    next(owner.workers.map(range(6)))  # abandoned
    assert [int(number) for _, number in owner.workers.map(range(3))] == [0, 1, 2]
    del owner, half
    gc.collect()
    assert not any(running(pid) for pid in pids)


def test_no_workers_is_this_process():
    (result,) = Workers(process, 0).map([7])
    assert result.tolist() == [os.getpid(), 7]
