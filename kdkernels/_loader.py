"""Loads the compiled parts once, at import, and remembers which device each one serves or why it does not.

Three files lie beside this one: the op libraries `_cpu` (with every op schema) and `_cuda`, and the pybind11 module
`_host`. None of them is required: what is missing here runs as `kdkernels.reference`.
"""

import os
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_REMEDY = {
    "cpu": "run `pip install --no-build-isolation .` in the source folder",
    "cuda": "run `KDKERNELS_CUDA=1 pip install --no-build-isolation .` in the source folder, with nvcc on PATH",
}

try:
    from . import _host as host
except ImportError as error:
    host, _why_no_host = None, f"{type(error).__name__}: {error}"
else:
    _why_no_host = None

_libraries: dict[str, str] = {}  # device type -> path of the library that serves it
_reasons: dict[str, str] = {}  # device type -> why none does


def serves(device_type: str) -> bool:
    """Whether a library is loaded for this device type. On the hot path of every call."""
    return device_type in _libraries


def why_not(device_type: str) -> str | None:
    """The cause and the remedy, where no library serves this device type."""
    if device_type in _libraries:
        return None
    return _reasons.get(device_type, f"kdkernels has kernels for cpu and cuda, none for {device_type}")


def state() -> dict:
    """{"libraries": {part: path}, "why_not": {part: reason}}; parts are "cpu", "cuda" and "host"."""
    libraries, reasons = dict(_libraries), dict(_reasons)
    if host is None:
        reasons["host"] = _why_no_host
    else:
        libraries["host"] = host.__file__
    return {"libraries": libraries, "why_not": reasons}


def built_with() -> dict:
    """Facts compiled into `_host`; empty without it."""
    return host.build_facts() if host else {}


def _versions() -> str:
    facts = built_with()
    built = f"torch {facts['torch']}, CUDA {facts['cuda']}" if facts else "unknown versions"
    return f"built for {built}; you have torch {torch.__version__}, CUDA {torch.version.cuda}"


def _load(device_type: str) -> None:
    path = next(_HERE.glob(f"_{device_type}*.so"), None)
    if path is None:
        _reasons[device_type] = f"the {device_type} library is not in {_HERE}; to build it, {_REMEDY[device_type]}"
        return
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        _reasons[device_type] = f"{path.name} does not load ({_versions()}): {error}; to rebuild it, {_REMEDY[device_type]}"
    else:
        _libraries[device_type] = str(path)


def _apply_isa(name: str) -> None:
    """Forces the CPU instruction set. `_cpu` and `_host` each hold a copy of the kernels, and of this choice."""
    try:
        if host:
            host.set_isa(name)
        if serves("cpu"):
            torch.ops.kdkernels.set_cpu_isa(name)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"KDKERNELS_ISA: {error}") from None


def _load_all() -> None:
    _load("cpu")
    if torch.version.cuda is None:
        _reasons["cuda"] = f"torch {torch.__version__} is a build without CUDA"
    elif not serves("cpu"):
        _reasons["cuda"] = "the cpu library, which declares the ops, is not loaded: " + _reasons["cpu"]
    else:
        _load("cuda")
    if isa := os.environ.get("KDKERNELS_ISA"):
        _apply_isa(isa)


_load_all()
