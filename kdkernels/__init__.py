"""Fused losses for knowledge distillation, contrastive similarity and peer ensembles."""

from . import functional, nn, ops, reference
from ._backend import backend
from ._build_info import build_info
from .functional import *
from .version import __version__

__all__ = ["__version__", "backend", "build_info", "functional", "nn", "reference", *functional.__all__]
