"""Fixtures of all tests: the devices and, on the CPU, the instruction sets that this machine has."""

import getpass
import os
import tempfile

import pytest
import torch
from hypothesis import settings

from kdkernels import _loader

settings.register_profile("kdkernels", deadline=None, derandomize=True)
settings.load_profile("kdkernels")

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
MACHINES = [f"cpu-{isa}" for isa in (_loader.host.available_isas() if _loader.host else ())]
MACHINES += ["cuda"] * torch.cuda.is_available()


def pytest_configure():
    # For the workers of `pytest -n`: a thread that waits gives its core to another worker, rather than spin on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Inductor finds what it has compiled for another ATEN_CPU_CAPABILITY in its cache, and vectors of the wrong length in it.
    if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
        folder = f"torchinductor_{getpass.getuser()}_{capability}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), folder))


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=MACHINES)
def machine(request):
    """A device; on the CPU with each of its instruction sets in turn."""
    device, _, isa = request.param.partition("-")
    if not isa:
        yield device
        return
    usual = torch.ops.kdkernels.cpu_isa()
    torch.ops.kdkernels.set_cpu_isa(isa)
    yield device
    torch.ops.kdkernels.set_cpu_isa(usual)
