"""No matrix of similarities: what a step takes beyond its inputs and gradients, as the operating system counts it."""

import subprocess
import sys

import pytest

MIB = 2**20
STEP = """
import re, sys, torch, kdkernels as kd


def largest():  # KiB; ru_maxrss would be that of the parent process, where that is larger
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])


rows, width, losses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
query, key, *teacher = torch.randn(4, rows, width).unbind()
query, key = query.requires_grad_(), key.requires_grad_()
functions = {
    "similarity_kl": lambda q, k: kd.similarity_kl(q, k, *(t[: len(q)] for t in teacher)),
    "info_nce": lambda q, k: kd.info_nce(q, k, symmetric=True),
    "supervised_contrastive": lambda q, k: kd.supervised_contrastive(q, torch.arange(len(q)) // 2),
    "similarity_rank": lambda q, k: kd.similarity_rank(q, k, torch.arange(len(q))) + 0 * q.sum(),
}
for rows in (8, rows):  # the first calls start threads and load what they need
    before = largest()
    for loss in losses:
        functions[loss](query[:rows], key[:rows]).sum().backward()
        query.grad = key.grad = None
print(largest() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "rows, width, losses",
    [
        # A matrix takes 256 MiB, and one of 1 GiB.
        (8192, 16, ("similarity_kl", "info_nce", "supervised_contrastive", "similarity_rank")),
        pytest.param(16384, 256, ("similarity_kl",), marks=pytest.mark.long),
        pytest.param(16384, 256, ("info_nce",), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_memory_beyond_inputs_and_gradients(rows, width, losses):
    command = [sys.executable, "-c", STEP, str(rows), str(width), *losses]
    growth = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    gradients = 2 * rows * width * 4
    assert gradients / 2 < growth < gradients + 64 * MIB  # less would be no measurement
