"""Which images a run sees, and under which labels: functions of (labels, parameters, seed) alone.

Two methods compared under one seed hence see the same images, the same wrong labels, the same tasks.
"""

from dataclasses import replace

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from python_trainers.common.data.images import Dataset, Images
from python_trainers.common.errors import require


VALIDATION_SEED = 0  # never the run's: runs of all seeds are judged by the same images


def stratified(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Indices of ``count`` images, each class in proportion to its share of ``labels`` [N]; sorted."""
    chosen, _ = train_test_split(
        torch.arange(len(labels)).numpy(), train_size=count, stratify=labels.numpy(), random_state=seed
    )
    return torch.from_numpy(chosen).sort().values


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """``dataset`` with a stratified ``share`` of its training images, always the same, as validation images."""
    available, classes = len(dataset.train), dataset.classes
    require(0 <= share < 1, f"--validation must be a share >= 0 and < 1, got {share}")
    if share == 0:
        return dataset
    count = round(share * available)
    sizes = dataset.train.labels.bincount(minlength=classes)
    require(
        classes <= count <= available - classes and int(sizes.min()) >= 2,
        f"--validation {share} of {available} training images is {count}, which must be {classes} (one per class) to "
        f"{available - classes}, and every class must have 2, the smallest has {int(sizes.min())}",
    )
    chosen = stratified(dataset.train.labels, count, seed=VALIDATION_SEED)
    rest = torch.ones(available, dtype=torch.bool)
    rest[chosen] = False
    train, validation = dataset.train.subset(rest.nonzero().squeeze(1)), dataset.train.subset(chosen)
    for part, images in (("validation", validation), ("training", train)):
        empty = int((images.labels.bincount(minlength=classes) == 0).sum())
        require(
            empty == 0,
            f"--validation {share} leaves {empty} of {classes} classes without a {part} image: {len(images)} {part} "
            f"images, the smallest class has {int(sizes.min())} of {available}; hold out "
            f"{'more' if part == 'validation' else 'fewer'}",
        )
    return replace(dataset, train=train, validation=validation)


def few_images(dataset: Dataset, count: int | None, *, seed: int) -> Images:
    """``count`` training images, stratified; all of them if ``count`` is None."""
    available = len(dataset.train)
    if count is None or count == available:
        return dataset.train
    require(
        dataset.classes <= count <= available - dataset.classes,
        f"--train-images must be {dataset.classes} (one per class) to {available - dataset.classes}, "
        f"or {available} (all), got {count}",
    )
    sizes = dataset.train.labels.bincount(minlength=dataset.classes)
    require(
        int(sizes.min()) >= 2,
        f"--train-images needs 2 images of every class to choose from, class {int(sizes.argmin())} has "
        f"{int(sizes.min())}; take all images",
    )
    chosen = dataset.train.subset(stratified(dataset.train.labels, count, seed=seed))
    empty = int((chosen.labels.bincount(minlength=dataset.classes) == 0).sum())
    require(
        empty == 0,
        f"--train-images {count} of {available} leaves {empty} of {dataset.classes} classes without an image "
        f"(the smallest has {int(sizes.min())}); take more images",
    )
    return chosen


def image_count(dataset: Dataset, fraction: float) -> int:
    """How many images ``fraction`` of the training split is, to the nearest."""
    available, classes = len(dataset.train), dataset.classes
    require(
        classes / available <= fraction <= 1 - classes / available or fraction == 1,
        f"--train-fraction must be {classes / available:.4g} (one image per class) to "
        f"{1 - classes / available:.4g}, or 1 (all {available} images), got {fraction}",
    )
    return round(fraction * available)


def corrupt_labels(labels: Tensor, share: float, *, classes: int, seed: int) -> Tensor:
    """``labels`` [N] with a ``share`` of each class, in [0, 1), made another, all others equally likely."""
    require(0 <= share < 1, f"--noisy-labels must be a share >= 0 and < 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    corrupted = labels.clone()
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator, device="cpu")
        wrong = members[order[: round(share * len(members))]]
        steps = torch.randint(1, classes, (len(wrong),), generator=generator, device="cpu")
        corrupted[wrong] = (label + steps) % classes
    return corrupted


def long_tailed(labels: Tensor, ratio: float, *, classes: int, seed: int) -> Tensor:
    """Indices of a long-tailed subset, sorted: class c keeps n ratio^(-c / (classes - 1)) images.

    The exponential profile of Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware
    Margin Loss", https://arxiv.org/abs/1906.07413; n is the size of the smallest class, so that every class
    can keep its share.
    """
    largest = int(labels.bincount(minlength=classes).min())
    require(
        1 <= ratio <= largest,
        f"--imbalance must be 1 (none) to {largest}, the images of the smallest class, got {ratio}",
    )
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)
        # 1e-9: where the exact value is a whole number, rounding must not lose an image.
        size = int(largest * ratio ** (-label / (classes - 1)) + 1e-9)
        kept.append(members[torch.randperm(len(members), generator=generator, device="cpu")[:size]])
    return torch.cat(kept).sort().values


def class_splits(classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Classes 0..classes-1 in random order, cut into ``tasks`` parts whose sizes differ by at most one."""
    require(1 <= tasks <= classes, f"tasks must be 1 to {classes}, the number of classes, got {tasks}")
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed), device="cpu")
    return [part.tolist() for part in order.tensor_split(tasks)]
