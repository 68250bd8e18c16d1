"""Names become objects here and nowhere else; objects may be given instead of names."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from python_trainers.common.checkpoint import checkpoint_path, is_run, load_checkpoint
from python_trainers.common.checks import require_default
from python_trainers.common.data import (
    Dataset,
    Images,
    LoadedImages,
    augmented_by,
    corrupt_labels,
    few_images,
    given_dataset,
    hold_out,
    image_count,
    load_dataset,
    long_tailed,
    require_numbers,
)
from python_trainers.common.errors import require
from python_trainers.common.models import build_network
from python_trainers.common.models.network import Classifier
from python_trainers.common.models.tapped import Tapped, as_classifier
from python_trainers.common.models.weights import load_weights
from python_trainers.common.options import DataOptions, StudentOptions
from python_trainers.common.run import kept_entry

Given = nn.Module | Callable[[], nn.Module]  # a network, or what makes one
OWN = " weights"  # how the name of a user's own module ends


def resolve_dataset(
    options: DataOptions,
    *,
    seed: int,
    dataset: Any = None,
    augmentation: Callable | None = None,
    workers: int | None = None,  # processes that read images which are not in memory
) -> tuple[Dataset, Images]:
    """The data set after ``--validation``, ``--imbalance`` and ``--noisy-labels``, and the images to learn from.

    In this order: images are held out, the tail is cut, labels are corrupted, few images are taken of what is
    left. ``dataset`` stands for the one that ``options`` name: (train, test), see ``given_dataset``.
    """
    require(
        options.train_images is None or options.train_fraction is None,
        f"give --train-images or --train-fraction, not both, got {options.train_images} and "
        f"{options.train_fraction}",
    )
    if dataset is None:
        dataset = load_dataset(options.dataset, options.data_root, download=options.download).read_by(workers)
    else:
        require_default(options, "the data are given as objects", "dataset", "data_root", "download")
        dataset = given_dataset(dataset, workers=workers)
    if isinstance(dataset.train, LoadedImages):
        require_default(
            options,
            "images of a DataLoader have no numbers, those of the Dataset itself have",
            *("validation", "train_images", "train_fraction", "imbalance", "noisy_labels"),
        )
    if augmentation is not None:
        require_numbers(dataset.train, "an augmentation, which changes single images,")
        dataset = replace(dataset, augmentation=augmented_by(augmentation))
    dataset = hold_out(dataset, options.validation)
    train, classes = dataset.train, dataset.classes
    if options.imbalance != 1:
        train = train.subset(long_tailed(train.labels, options.imbalance, classes=classes, seed=seed))
    if options.noisy_labels != 0:
        wrong = corrupt_labels(train.labels, options.noisy_labels, classes=classes, seed=seed)
        train = replace(train, labels=wrong, clean_labels=train.labels)
    dataset = replace(dataset, train=train)
    count = options.train_images
    if options.train_fraction is not None:
        count = image_count(dataset, options.train_fraction)
    return dataset, few_images(dataset, count, seed=seed)


def as_loaded(args: StudentOptions, dataset: Dataset) -> StudentOptions:
    """``args`` with the batch size of a DataLoader, if one gives the training images; what it decides is refused."""
    if not isinstance(dataset.train, LoadedImages):
        return args
    largest = dataset.train.batch_sizes[1]
    if args.batch_size != largest:
        require_default(args, f"the training data are a DataLoader of batches of {largest}", "batch_size")
    why = "the training data are a DataLoader, which makes the batches itself"
    require_default(args, why, "grad_accum_steps", "teacher_batch_size", "epoch_of")
    args = replace(args, batch_size=largest)
    args.check()
    return args


@dataclass(frozen=True)
class Blueprint:
    """A network that a run can build: by its name, or the user's own."""

    name: str  # what a checkpoint calls it
    build: Callable[[], Classifier]
    again: bool = True  # whether each call builds one with weights of its own
    named: bool = True  # one of build_network's; False: the user's own

    def require_again(self, why: str) -> None:
        """Refuse a single module where several are needed."""
        require(self.again, f"{why}: give a function that returns a new {self.name}, not the module itself")

    def require_features(self) -> None:
        """Refuse a network whose features are found nowhere."""
        with torch.random.fork_rng(devices=[]):
            _ = self.build().num_features


def resolve_network(name: str, given: Given | None, dataset: Dataset, who: str = "student") -> Blueprint:
    """The network called ``name``, or the one that is ``given`` instead to be the ``who`` of a run."""
    if given is None:
        return Blueprint(name, lambda: build_network(name, dataset.image_shape, dataset.classes))

    def classifier(module: Any) -> Classifier:
        require(
            isinstance(module, nn.Module),
            f"the {who} must be a torch.nn.Module or a function that returns one, got {type(module).__name__}",
        )
        require(
            who == "teacher" or any(weight.requires_grad for weight in module.parameters()),
            f"the {who} ({type(module).__name__}) has no weight to train: none requires a gradient (one that has "
            "taught is frozen; module.requires_grad_() thaws it)",
        )
        return as_classifier(module, dataset.image_shape, dataset.classes, who)

    if isinstance(given, nn.Module) or not callable(given):
        own = classifier(given)
        return Blueprint(describe(own), lambda: own, again=False, named=False)
    with torch.random.fork_rng(devices=[]):
        first = bare(classifier(given()))
    name, known = describe(first), weakref.ref(first)

    def another() -> Classifier:
        network = classifier(given())
        require(
            who == "teacher" or bare(network) is not known(),
            f"the function must return a new {name} each time, it returned the same module again",
        )
        return network

    return Blueprint(name, another, named=False)


def require_apart(student: Given | None, teacher: Given | None) -> None:
    """Refuse two modules that have weights in common."""
    if isinstance(student, nn.Module) and isinstance(teacher, nn.Module):
        require(
            set(student.parameters()).isdisjoint(teacher.parameters()),
            "student and teacher share weights, which would be frozen: give copies (copy.deepcopy)",
        )


def describe(network: nn.Module) -> str:
    """What a checkpoint calls a network of the user's own."""
    module = bare(network)
    return f"{type(module).__qualname__} of {sum(weight.numel() for weight in module.parameters()):,}{OWN}"


def bare(network: nn.Module) -> nn.Module:
    """The module whose state is saved: the user's own, not what was put around it."""
    return network.module if isinstance(network, Tapped) else network


def network_of_run(path: Path) -> str | None:
    """The name of the network that the run at ``path`` trained, which must have one; None: bare weights."""
    file = checkpoint_path(path) if path.is_dir() else path
    name = load_checkpoint(file)["network"] if is_run(file) else None
    require(
        name is None or not name.endswith(OWN),
        f"{path} holds a {name}, a module of somebody's own: give one like it, evaluate(args, student=module)",
    )
    return name


def load_trained(path: Path, network: Blueprint, dataset: Dataset) -> tuple[Classifier, float | None]:
    """``network`` with the weights of a finished run or of a file of bare weights.

    Also the run's test accuracy in [0, 1], None for a file. A run must be of the same network, data set and
    number of classes.
    """
    file = checkpoint_path(path) if path.is_dir() else path
    if not is_run(file):
        module = network.build()
        load_weights(bare(module), file)
        return module, None
    state = load_checkpoint(file)
    trained_on = state["configuration"]["dataset"]
    require(
        state["network"] == network.name,
        f"{path} holds a {state['network']}, this run needs a {network.name}: name its network, give the module "
        "that it is of, or another path",
    )
    require(trained_on == dataset.name, f"{path} was trained on {trained_on}, this run needs {dataset.name}")
    done, epochs = len(state["history"]), state["epochs"]
    require(
        done == epochs,
        f"{path} stopped after epoch {done} of {epochs}; continue it with its own command first",
    )
    module = network.build()
    load_weights(bare(module), file)
    return module, kept_entry(state["history"])["test_accuracy"]
