"""Validation images held out of the training split."""

from dataclasses import replace

import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from torch.utils.data import DataLoader, TensorDataset

from python_trainers.common.data import Dataset, given_dataset, hold_out, load_dataset
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers


def of_sizes(*sizes: int) -> Dataset:
    """A data set with so many training images of each class."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    digits = load_dataset("digits", None)
    train = replace(digits.train, pixels=torch.randn(len(labels), 1, 8, 8), labels=labels)
    return replace(digits, train=train, classes=len(sizes))


def test_held_out_images_are_fixed_stratified_and_no_training_images():
    whole = load_dataset("digits", None)
    held = hold_out(whole, 0.2)
    assert (len(held.train), len(held.validation), held.test is whole.test) == (800, 200, True)
    sizes = whole.train.labels.bincount()
    assert (held.validation.labels.bincount() - 0.2 * sizes).abs().max() < 1
    images = {image.numpy().tobytes() for image in whole.train.pixels}
    parts = [{image.numpy().tobytes() for image in part.pixels} for part in (held.train, held.validation)]
    assert parts[0] | parts[1] == images and len(parts[0]) + len(parts[1]) == len(images)
    assert torch.equal(hold_out(whole, 0.2).validation.pixels, held.validation.pixels)
    assert hold_out(whole, 0) is whole and whole.validation is None
    task = held.restricted([7, 2])
    assert len(task.validation) == int((held.validation.labels == 7).sum() + (held.validation.labels == 2).sum())
    assert set(task.validation.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("dataset", "share", "sentence"),
    [
        (of_sizes(50, 50), 0.001, "0.001 of 100 training images is 0, which must be 2 .one per class. to 98"),
        (of_sizes(50, 50), 0.99, "0.99 of 100 training images is 99, which must be 2 .one per class. to 98"),
        (of_sizes(50, 1), 0.1, "every class must have 2, the smallest has 1"),
        (of_sizes(97, 3), 0.1, "leaves 1 of 2 classes without a validation image: 10 .* smallest .* 3 of 100; .* more"),
        (of_sizes(97, 3), 0.9, "leaves 1 of 2 classes without a training image: 10 .* smallest .* 3 of 100; .* fewer"),
        (of_sizes(50, 50), 1.0, "--validation must be a share >= 0 and < 1, got 1.0"),
        (of_sizes(50, 50), -0.1, "--validation must be a share >= 0 and < 1, got -0.1"),
        (of_sizes(50, 50), float("nan"), "--validation must be a share >= 0 and < 1, got nan"),
    ],
)
def test_shares_that_leave_a_class_without_images(dataset, share, sentence):
    with pytest.raises(TrainerError, match=sentence):
        hold_out(dataset, share)


def test_nothing_is_held_out_of_a_loader():
    data = DataLoader(TensorDataset(torch.randn(20, 1, 4, 4), torch.arange(20) % 2), batch_size=4)
    with pytest.raises(TrainerError, match="the training data are a DataLoader"):
        hold_out(given_dataset((data, data)), 0.5)
