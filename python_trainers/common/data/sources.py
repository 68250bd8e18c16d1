"""Sources of training batches, and those made of others.

A source is iterated once per epoch. It has ``__len__`` (steps of an epoch), ``__iter__`` (its batches), and
``state_dict`` and ``load_state_dict``: what decides all batches to come, as it stands between two epochs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from python_trainers.common.data.batches import Batch, Batches
from python_trainers.common.data.images import Images
from python_trainers.common.data.loaded import LoadedImages
from python_trainers.common.data.loader import Loader
from python_trainers.common.errors import require


class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Pair(NamedTuple):
    """One step of :class:`Joined`."""

    labelled: Batch
    unlabelled: Batch


class Joined:
    """A step gives one batch of ``labelled`` and ``ratio`` of ``unlabelled``, as one; the epoch ends with both."""

    def __init__(self, labelled: Source, unlabelled: Source, ratio: int = 1) -> None:
        require(
            ratio >= 1 and len(unlabelled) == ratio * len(labelled),
            f"an epoch of unlabelled batches must be {ratio} (a ratio >= 1) times the {len(labelled)} labelled ones, "
            f"got {len(unlabelled)}",
        )
        self._labelled, self._unlabelled, self._ratio = labelled, unlabelled, ratio

    def __len__(self) -> int:
        return len(self._labelled)

    def __iter__(self) -> Iterator[Pair]:
        unlabelled = iter(self._unlabelled)
        for batch in self._labelled:
            several = [next(unlabelled) for _ in range(self._ratio)]
            joined = (None if parts[0] is None else torch.cat(parts) for parts in zip(*several, strict=True))
            yield Pair(batch, Batch(*joined))

    def state_dict(self) -> dict[str, Any]:
        """Of both sources."""
        return {"labelled": self._labelled.state_dict(), "unlabelled": self._unlabelled.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._labelled.load_state_dict(state["labelled"])
        self._unlabelled.load_state_dict(state["unlabelled"])


class Stream:
    """Tasks one after another: an epoch is a task, and one pass of its source."""

    def __init__(self, tasks: Sequence[Source]) -> None:
        require(len(tasks) > 0, "a stream must have a task, got none")
        self.tasks = tasks
        self.task = 0  # the number of the one that is going on, or comes next

    def __len__(self) -> int:
        return len(self.tasks[self.task]) if self.task < len(self.tasks) else 0

    def __iter__(self) -> Iterator[Any]:
        require(self.task < len(self.tasks), f"the stream has {len(self.tasks)} tasks, all of them are done")
        yield from self.tasks[self.task]
        self.task += 1

    def state_dict(self) -> dict[str, Any]:
        """Which task comes next, and the sources of all."""
        return {"task": self.task, "tasks": [source.state_dict() for source in self.tasks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.task = state["task"]
        for source, saved in zip(self.tasks, state["tasks"], strict=True):
            source.load_state_dict(saved)


def source_of(images: Images | LoadedImages, **options: Any) -> Batches | Loader:
    """``Batches(images, **options)``; of images that a DataLoader gives, the loader, whose batches are its own."""
    if isinstance(images, Images):
        return Batches(images, **options)
    names = ("accelerator", "augmentation", "background", "channels_last")
    taken = {name: options[name] for name in names if name in options}
    return Loader(images.loader, standard=images.standard, **taken)
