"""Worker processes that live as long as their owner."""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from python_trainers.common.errors import TrainerError

MAX_WORKERS = 8  # per training process


class Workers:
    """Processes that call ``function`` on requests, ahead of whoever takes the results, in order.

    They start with the first request and end with this object, which ``function`` must not refer to. A
    ``TrainerError`` in one is raised here.
    """

    def __init__(self, function: Callable[[Any], Any], workers: int | None = None) -> None:
        if workers is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes))
        self._calls, self._number = _Calls(function), workers
        self._requests = _Requests()
        self._loader = self._new_loader(self._requests)
        self._busy = False
        # The registry of finalizers keeps the loader out of any cycle of garbage: in one, its queues may be closed
        # before it tells its processes to end, and then it waits five seconds for each.
        weakref.finalize(self, _let_go, self._loader).atexit = False

    def map(self, requests: Iterable[Any]) -> Iterator[Any]:
        """The results of ``requests``."""
        if self._busy:  # a second pass within the first gets processes of its own
            yield from self._results(self._new_loader(requests))
            return
        self._busy = True
        try:
            self._requests.now = requests
            yield from self._results(self._loader)
        finally:
            self._busy = False

    def _new_loader(self, requests: Iterable[Any]) -> DataLoader:
        return DataLoader(
            self._calls,
            batch_size=None,
            sampler=requests,
            num_workers=self._number,
            persistent_workers=self._number > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws a number from the global one
        )

    @staticmethod
    def _results(loader: DataLoader) -> Iterator[Any]:
        for result in loader:
            if isinstance(result, TrainerError):
                raise result
            yield result


def _let_go(loader: DataLoader) -> None:
    """The last reference goes with the call."""


class _Requests:
    """The sampler of a loader that outlives a pass: those of the pass that is going on."""

    now: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.now)


class _Calls(Dataset):
    """Item ``request`` is the function's result; an error is handed over, since raised it becomes a traceback."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._function(request)
        except TrainerError as error:
            return error
