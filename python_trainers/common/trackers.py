"""The figures of a run, sent to a tracker that accelerate knows."""

from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from python_trainers.common.errors import require
from python_trainers.common.hooks import Hook


def require_tracker(name: str) -> None:
    """Refuse a tracker that accelerate does not know or whose package is not installed."""
    known = [str(tracker) for tracker in LoggerType.list() if str(tracker) != "all"]
    require(name in known, f"unknown --log-with {name!r}; there is: {', '.join(known)}")
    installed = [str(tracker) for tracker in get_available_trackers()]
    require(
        name in installed,
        f"--log-with {name} needs the package {name}, which is not installed: pip install {name}",
    )


class Tracking(Hook):
    """An entry per epoch in every tracker of the accelerator."""

    def __init__(self, accelerator: Accelerator, configuration: dict[str, Any]) -> None:
        self._accelerator = accelerator
        plain = {name: value for name, value in configuration.items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("kdkernels", config=plain)

    def end_epoch(self, epoch: int, figures: dict[str, float]) -> dict[str, float]:
        self._accelerator.log(figures, step=epoch)
        return {}

    def close(self) -> None:
        for tracker in self._accelerator.trackers:
            tracker.finish()
