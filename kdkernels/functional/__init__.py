"""The public functions: checks, then the compiled op of the tensors' device or the PyTorch reference."""

from .softened_kl import kd_loss, soft_cross_entropy, softened_kl

__all__ = ["kd_loss", "soft_cross_entropy", "softened_kl"]
