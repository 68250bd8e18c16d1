"""Errors a user can mend: they reach the terminal as one sentence, without a traceback."""


class TrainerError(Exception):
    """An expected failure. Its text has the name, the rule, the value got and, where it helps, the remedy."""


class Diverged(TrainerError):
    """A figure became infinite or NaN while training."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`TrainerError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise TrainerError(message)
