"""The CPU kernels on NumPy arrays, `host`, and a fixture that runs a test once per instruction set of this machine."""

import pytest

host = pytest.importorskip("kdkernels._host", reason="the host library is not built")


@pytest.fixture(params=host.available_isas())
def isa(request):
    usual = host.cpu_isa()
    host.set_isa(request.param)
    yield request.param
    host.set_isa(usual)
