"""What this installation is: for bug reports, and for the programs that store it beside their results."""

import platform

import torch

from . import _backend, _loader
from .version import __version__


def _cpu_isa() -> str | None:
    """The instruction set of the op library; `_host` has a copy of its own, which need not be the same."""
    return torch.ops.kdkernels.cpu_isa() if _loader.serves("cpu") else None


def build_info() -> dict:
    """Versions, build facts and the state of the compiled libraries, as plain values.

    "built" is what the libraries were compiled with (None: unknown, or built without CUDA), "running" is what they run in.
    "libraries" maps "cpu", "cuda" and "host" to the loaded files; "why_not" tells of the others why they are missing.
    """
    built = _loader.built_with()
    return {
        "version": __version__,
        "torch_built": built.get("torch"),
        "torch_running": torch.__version__,
        "python": platform.python_version(),
        "compiler": built.get("compiler"),
        "cuda_built": built.get("cuda"),
        "cuda_running": torch.version.cuda,
        "architectures": built.get("architectures"),
        "cpu_isa": _cpu_isa(),
        "threads": torch.get_num_threads(),
        "backend": _backend.choice(),
        **_loader.state(),
    }
