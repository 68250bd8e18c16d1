"""What may happen around the steps of a loop, beside the steps themselves.

Moving averages, queues, reservoirs and running ratios of losses are hooks. One that remembers something has a
``name``, ``state_dict`` and ``load_state_dict``, and is saved with the run.
"""


class Hook:
    """Does nothing; a hook overrides what it needs."""

    name = ""  # in the checkpoint; "": nothing to save

    def begin_epoch(self, epoch: int) -> None:
        """Before the first batch of an epoch; ``epoch`` counts from 1."""

    def before_step(self) -> None:
        """When the gradients of a step are complete."""

    def after_step(self) -> None:
        """When the optimizer has stepped."""

    def end_epoch(self, epoch: int, figures: dict[str, float]) -> dict[str, float]:
        """After an epoch was measured, before it is saved; returns further figures."""
        return {}

    def close(self) -> None:
        """When training ends, after the last epoch or by an exception."""
