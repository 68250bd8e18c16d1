"""Every fragment of the CPU kernels compiles alone, for each width of vectors, and so does every header of the CUDA kernels: it
includes what it uses.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "g++")
FRAGMENTS = sorted(path.relative_to(CSRC).as_posix() for path in CSRC.glob("cpu/*-inl.h"))

pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler")


def errors_of(includes, bytes_of_vector):
    lines = [f"#define KD_VECTOR_BYTES {bytes_of_vector}", *(f'#include "{name}"' for name in includes)]
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Wno-unused-function", f"-I{CSRC}", "-x", "c++", "-"]
    return subprocess.run(command, input="\n".join(lines), capture_output=True, text=True).stderr


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_compiles_alone(fragment):
    assert not errors_of([fragment], 16)


@pytest.mark.parametrize("header", sorted(path.relative_to(CSRC).as_posix() for path in CSRC.glob("cuda/*.cuh")))
def test_a_header_of_the_cuda_kernels_compiles_alone(header):
    assert not errors_of([header], 16)


@pytest.mark.parametrize("bytes_of_vector", [16, 32, 64] if platform.machine() == "x86_64" else [16])
def test_fragments_compile_in_any_order(bytes_of_vector):
    assert not errors_of(FRAGMENTS, bytes_of_vector)
    assert not errors_of(FRAGMENTS[::-1], bytes_of_vector)


def test_a_guard_lets_a_fragment_in_once_per_instruction_set(tmp_path):
    """As cpu/each_isa.h includes them."""
    source = tmp_path / "fragments.h"
    source.write_text("".join(f'#include "{name}"\n' for name in FRAGMENTS))
    each = ["#define KD_ISA_SOURCE " + f'"{source}"', '#include "cpu/each_isa.h"']
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-Wall", "-Wno-unused-function", f"-I{CSRC}", "-x", "c++", "-"]
    done = subprocess.run(command, input="\n".join(each), capture_output=True, text=True)
    assert not done.stderr
