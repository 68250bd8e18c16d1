"""Build of the three native parts of kdkernels; everything else about the package stands in pyproject.toml.

    kdkernels/_cpu   every op schema and the CPU kernels     csrc/library.cpp, csrc/cpu/*.cpp
    kdkernels/_cuda  the CUDA kernels                        csrc/cuda/*.cu
    kdkernels/_host  pybind11 module, needs no torch         csrc/python/*.cpp and the objects of csrc/cpu/*_kernel.cpp

The first two are op libraries on the LibTorch stable ABI: not Python modules, and built once for every torch >= 2.10.
The CUDA library is built at the same time as the other two.

Environment variables:
    KDKERNELS_CUDA=0|1     leave the CUDA library out, or insist on it (unset: built where nvcc and a CUDA torch are)
    CUDA_HOME              root of the CUDA toolkit (unset: asked of the nvcc on PATH)
    TORCH_CUDA_ARCH_LIST   architectures, as torch spells them (unset: those of the visible GPUs, else CUDA_ARCHS)
    MAX_JOBS               number of parallel compilations (unset: one per core)
"""

import multiprocessing
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory

import pybind11
import torch
from setuptools import Extension, setup

CUDA_ARCHS = ("7.5", "8.0", "9.0a", "10.0", "12.0")  # 8.6 and 8.9 run the code of 8.0


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
    """Those of the visible GPUs, else all of CUDA_ARCHS that this nvcc knows; the newest also as PTX, for GPUs yet to come."""
    known = ask_nvcc("--list-gpu-arch").split()
    spelled = {arch.rstrip("a"): arch for arch in CUDA_ARCHS}
    visible = {"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
    if here := [spelled.get(arch, arch) for arch in sorted(visible) if "compute_" + arch.replace(".", "") in known]:
        return ";".join(here)
    return ";".join(arch for name, arch in spelled.items() if "compute_" + name.replace(".", "") in known) + "+PTX"


def find_ninja():
    """torch calls the ninja on PATH. That of a virtual environment is not there unless the environment is activated."""
    try:
        from ninja import BIN_DIR
    except ImportError:  # maybe the system has one
        return
    if BIN_DIR:
        os.environ["PATH"] = BIN_DIR + os.pathsep + os.environ["PATH"]


find_ninja()
toolkit = toolkit_root()
with_cuda = wants_cuda(toolkit)
if with_cuda:
    # torch.utils.cpp_extension reads both, the first already at its import.
    os.environ["CUDA_HOME"] = toolkit
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths  # noqa: E402


@contextmanager
def shared_jobs(processes, jobs):
    """At most `jobs` compilations at a time in all processes together: a jobserver of GNU make, which ninja supports since 1.13.
    Each process may always run one; for each further one it takes a byte from the pipe, which it puts back afterwards."""
    with TemporaryDirectory() as folder:
        pipe = os.path.join(folder, "jobs")
        os.mkfifo(pipe)
        held = os.open(pipe, os.O_RDWR)
        os.write(held, b"+" * (jobs - processes))
        os.environ["MAKEFLAGS"] = f" -j{jobs} --jobserver-auth=fifo:{pipe}"
        yield
        os.close(held)


def write_if_new(path, text):
    """An unchanged file keeps its time, so that ninja does not compile what includes it."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class BuildEach(BuildExtension):
    """Objects are kept in build/NAME for the next build. _cuda is built in a separate process: BuildExtension builds one library
    after another, and a core would be idle during the last file of each."""

    def build_extensions(self):
        write_if_new(facts_header, facts)
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count())
        self.separate = self.process = None
        if not with_cuda or jobs == 1:
            os.environ["MAX_JOBS"] = str(jobs)
            return super().build_extensions()
        os.environ.pop("MAX_JOBS", None)  # which torch passes to ninja as -j: ninja would ignore the jobserver
        self.separate = "kdkernels._cuda"
        with shared_jobs(2, jobs):
            super().build_extensions()
            self.process.join()
        if self.process.exitcode:
            raise SystemExit("kdkernels: the CUDA library could not be built; see the compiler's messages above")

    def swig_sources(self, sources, extension):
        """Called with the sources that setuptools has sorted by name, before they are compiled; ninja starts them in this order.
        row_loss_kernel.cpp takes longest and is late in the alphabet: started among the first it does not run alone at the end."""
        return super().swig_sources(sources[::-1], extension)

    def build_extension(self, ext):
        self.build_temp = os.path.join("build", ext.name.rpartition(".")[2])
        if ext.name != self.separate:
            return super().build_extension(ext)
        self.process = multiprocessing.get_context("fork").Process(target=super().build_extension, args=[ext])
        self.process.start()


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


cuda_version = re.search(r"release ([\d.]+)", ask_nvcc("--version"))[1] if with_cuda else ""
cuda_archs = os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else ""
facts = f"""\
#define KD_BUILT_TORCH "{torch.__version__}"
#define KD_BUILT_CUDA "{cuda_version}"
#define KD_BUILT_ARCHITECTURES "{cuda_archs}"
"""
# In a header, so that only one file is compiled again when they change.
facts_header = Path("build", "_host", "build_facts.h").absolute()

kernels = sorted(glob("csrc/cpu/*_kernel.cpp"))
extensions = [
    op_library(CppExtension, "kdkernels._cpu", ["csrc/library.cpp", *glob("csrc/cpu/*.cpp")], cxx=cxx_flags),
    Extension(
        "kdkernels._host",
        glob("csrc/python/*.cpp"),
        include_dirs=[headers, str(facts_header.parent), pybind11.get_include()],
        # The kernels do not depend on torch: the objects of _cpu are linked, which is built before.
        extra_objects=[os.path.join("build", "_cpu", Path(kernel).with_suffix(".o")) for kernel in kernels],
        extra_compile_args=[*cxx_flags, "-std=c++17"],
        extra_link_args=link_flags,
        language="c++",
    ),
]
if with_cuda:  # first: it is built while the others are
    extensions.insert(0, op_library(CUDAExtension, "kdkernels._cuda", glob("csrc/cuda/*.cu"), nvcc=nvcc_flags))

setup(ext_modules=extensions, cmdclass={"build_ext": BuildEach})
