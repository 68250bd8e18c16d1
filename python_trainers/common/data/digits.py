"""Handwritten digits that come with scikit-learn."""

import torch
from sklearn.datasets import load_digits

from python_trainers.common.data.augmentation import Augmentation
from python_trainers.common.data.images import Dataset, Images
from python_trainers.common.data.splits import stratified

SPLIT_SEED = 0  # never the run's seed, or a teacher of one run has seen the test images of another
TRAIN_IMAGES = 1000  # of 1,797; the other 797 are the test set


def digits() -> Dataset:
    """8x8 grey values (UCI Optical Recognition of Handwritten Digits, its test part)."""
    raw = load_digits()
    pixels = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(raw.target).long()
    chosen = stratified(labels, TRAIN_IMAGES, seed=SPLIT_SEED)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    mean, std = pixels[chosen].mean(), pixels[chosen].std()
    images = Images((pixels - mean) / std, labels)
    return Dataset(
        name="digits",
        train=images.subset(chosen),
        test=images.subset(rest.nonzero().squeeze(1)),
        classes=10,
        augmentation=Augmentation(padding=1),
        background=(-mean / std).item(),
        # One thread: a batch of 8x8 images is too little to share, and on a busy machine the threads' waiting
        # for each other makes the same run many times longer.
        cpu_threads=1,
    )
