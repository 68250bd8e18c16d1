"""Names of modules in error messages."""

from torch import nn


def kind(module: nn.Module) -> str:
    """Its class, or that of the module inside a wrapper."""
    return type(getattr(module, "module", module)).__name__
