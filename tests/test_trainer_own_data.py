"""Whole runs on the user's own data: stopped anywhere and continued, with any number of workers, they are the same."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from trainer_runs import assert_same_run, torch_settings  # noqa: F401

from python_trainers import crd, kd, sskd
from python_trainers.common.data import load_dataset
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers
DIGITS = load_dataset("digits", None)
IMAGES = 200


class Stop(Exception):
    """In the middle of an epoch."""


class Own(TensorDataset):
    """Digits, brightened at random by every generator there is."""

    def __init__(self, images, count):
        super().__init__(images.pixels[:count], images.labels[:count])
        self.stop_at, self.calls = None, 0

    def __getitem__(self, number):
        image, label = super().__getitem__(number)
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stop
        return image + 0.1 * (random.random() + float(np.random.rand()) + torch.rand(())), label


def data(kind: str, workers: int = 0) -> tuple:
    """A training set of 200 images and a test set of 100."""
    train, test = Own(DIGITS.train, IMAGES), Own(DIGITS.test, 100)
    if kind == "Dataset":
        return train, test
    return tuple(DataLoader(part, batch_size=50, shuffle=True, num_workers=workers) for part in (train, test))


def args(out: Path, **options) -> kd.Args:
    return kd.Args(out=out, epochs=3, batch_size=50, student_model="small_mlp", kl_weight=0.0, **options)


def flipped(image):
    return image.flip(2) if random.random() < 0.5 else image


@pytest.mark.parametrize("kind", ["Dataset", "DataLoader"])
def test_interrupted_run_continues_exactly(kind, tmp_path):
    augmentation = flipped if kind == "Dataset" else None
    kd.train(args(tmp_path / "whole", workers=0), dataset=data(kind), augmentation=augmentation)

    broken = data(kind)
    own = broken[0] if kind == "Dataset" else broken[0].dataset
    own.stop_at = 2 * IMAGES + 120  # in the second epoch, since all are read once before the first
    with pytest.raises(Stop):
        kd.train(args(tmp_path / "stopped", workers=0), dataset=broken, augmentation=augmentation)
    assert not (tmp_path / "stopped" / "summary.json").exists() and (tmp_path / "stopped" / "metrics.jsonl").exists()
    torch.manual_seed(9), random.seed(9), np.random.seed(9)  # of another process
    again = data(kind)
    kd.train(args(tmp_path / "stopped", workers=2), dataset=again, augmentation=augmentation)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_rotations_of_a_loader(tmp_path):
    options = {"student_model": "small_convnet", "teacher_model": "small_mlp", "teacher_epochs": 1, "head_epochs": 1}
    summary = sskd.train(sskd.Args(out=tmp_path, epochs=1, batch_size=50, **options), dataset=data("DataLoader"))
    assert summary["figures"]["train_images"] == 200 and summary["figures"]["test_images"] == 100


def test_loader_is_refused_where_images_are_remembered(tmp_path):
    with pytest.raises(TrainerError, match="the training data are a DataLoader"):
        crd.train(
            crd.Args(out=tmp_path, epochs=1, teacher_model="small_mlp", teacher_epochs=1), dataset=data("DataLoader")
        )
    with pytest.raises(TrainerError, match="images of a DataLoader have no numbers"):
        kd.train(args(tmp_path, train_images=50), dataset=data("DataLoader"))
    with pytest.raises(TrainerError, match="the training data are a DataLoader"):
        kd.train(args(tmp_path), dataset=data("DataLoader"), augmentation=flipped)


def test_other_data_are_refused(tmp_path):
    kd.train(args(tmp_path, workers=0), dataset=data("Dataset"))
    with pytest.raises(TrainerError, match="holds a run with other options .dataset Own 200 .* there, digits here"):
        kd.train(args(tmp_path))
