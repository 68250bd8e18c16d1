"""Build of the three native parts of kdkernels; everything else about the package stands in pyproject.toml.

    kdkernels/_cpu   every op schema and the CPU kernels     csrc/library.cpp, csrc/cpu/*.cpp
    kdkernels/_cuda  the CUDA kernels                        csrc/cuda/*.cu
    kdkernels/_host  pybind11 module, needs no torch         csrc/python/*.cpp, csrc/cpu/*_kernel.cpp

The first two are op libraries on the LibTorch stable ABI: not Python modules, and built once for every torch >= 2.10.

Environment variables:
    KDKERNELS_CUDA=0|1     leave the CUDA library out, or insist on it (unset: built where nvcc and a CUDA torch are)
    CUDA_HOME              root of the CUDA toolkit (unset: asked of the nvcc on PATH)
    TORCH_CUDA_ARCH_LIST   architectures, as torch spells them (unset: those of the visible GPUs, else CUDA_ARCHS)
    MAX_JOBS               number of parallel compilations
"""

import os
import re
import shutil
import subprocess
from glob import glob
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup

CUDA_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")


def toolkit_root():
    """Root of the CUDA toolkit or None. nvcc itself is asked, since the one on PATH may be a wrapper far from its toolkit."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return home if Path(home, "bin", "nvcc").exists() else None
    for nvcc in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if nvcc and Path(nvcc).exists():
            plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
            if top := re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE):
                return os.path.realpath(top[1].strip())
    return None


def wants_cuda(toolkit):
    choice = os.environ.get("KDKERNELS_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"kdkernels: KDKERNELS_CUDA must be 0, 1 or unset, got {choice!r}")
    if choice == "1" and toolkit is None:
        raise SystemExit("kdkernels: KDKERNELS_CUDA=1 but no nvcc was found; set CUDA_HOME to the root of the CUDA toolkit")
    if choice == "1" and torch.version.cuda is None:
        raise SystemExit(f"kdkernels: KDKERNELS_CUDA=1 but torch {torch.__version__} is built without CUDA; install a CUDA build")
    return choice != "0" and toolkit is not None and torch.version.cuda is not None


def ask_nvcc(question):
    nvcc = os.path.join(toolkit, "bin", "nvcc")
    return subprocess.run([nvcc, question], capture_output=True, text=True, check=True).stdout


def architectures():
    """Those of the visible GPUs, else all that this nvcc knows; the newest of them also as PTX, for GPUs yet to come."""
    known = ask_nvcc("--list-gpu-arch").split()
    archs = [arch for arch in CUDA_ARCHS if "compute_" + re.sub(r"\D", "", arch) in known]
    visible = {"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
    if here := [arch for arch in archs if arch.rstrip("a") in visible]:
        return ";".join(here)
    return ";".join(archs) + "+PTX"


toolkit = toolkit_root()
with_cuda = wants_cuda(toolkit)
if with_cuda:
    # torch.utils.cpp_extension reads both, the first already at its import.
    os.environ["CUDA_HOME"] = toolkit
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths  # noqa: E402


class BuildEach(BuildExtension):
    """Objects go to build/NAME: _cpu and _host compile some of the same files with different flags, and an editable
    install reuses what an in-place build compiled."""

    def build_extension(self, ext):
        self.build_temp = os.path.join("build", ext.name.rpartition(".")[2])
        super().build_extension(ext)


headers = os.path.abspath("csrc")  # absolute, because ninja compiles in another folder
# Source paths reach the binary through __FILE__ in error messages: keep the building machine's own out of it.
portable = [f"-fmacro-prefix-map={path}/=" for path in [os.getcwd(), *include_paths()]]
cxx_flags = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", *portable]
# Architectures of one file compile side by side; ninja runs files side by side, so two of each are enough.
nvcc_flags = ["-O3", "-DUSE_CUDA", "--threads=2", "-Xcompiler", ",".join(cxx_flags)]
link_flags = ["-Wl,-s"]


def op_library(make, name, sources, **flags):
    return make(
        name,
        sources,
        include_dirs=[headers],
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
        # libtorch exports parts of the C++ standard library too: take them from the library itself, which comes first.
        libraries=["stdc++"],
        extra_compile_args=flags,
        extra_link_args=link_flags,
        py_limited_api=True,  # not a Python module, hence no libtorch_python
    )


build_facts = {
    "KD_BUILT_TORCH": torch.__version__,
    "KD_BUILT_CUDA": re.search(r"release ([\d.]+)", ask_nvcc("--version"))[1] if with_cuda else "",
    "KD_BUILT_ARCHITECTURES": os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else "",
}

extensions = [
    op_library(CppExtension, "kdkernels._cpu", ["csrc/library.cpp", *sorted(glob("csrc/cpu/*.cpp"))], cxx=cxx_flags),
    Extension(
        "kdkernels._host",
        sorted(glob("csrc/python/*.cpp") + glob("csrc/cpu/*_kernel.cpp")),
        include_dirs=[headers, pybind11.get_include()],
        define_macros=[(name, f'"{value}"') for name, value in build_facts.items()],
        extra_compile_args=[*cxx_flags, "-std=c++17"],
        extra_link_args=link_flags,
        language="c++",
    ),
]
if with_cuda:
    extensions.append(op_library(CUDAExtension, "kdkernels._cuda", sorted(glob("csrc/cuda/*.cu")), nvcc=nvcc_flags))

setup(ext_modules=extensions, cmdclass={"build_ext": BuildEach})
