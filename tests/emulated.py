"""Builds and loads `kd_emulated`: the CUDA kernels as they run on a CPU (docs/emulation.md).

    emulated.module()                            the plain build, in this process
    emulated.run_sanitized([...arguments])       python with AddressSanitizer and UBSan, where module() is that build
    python tests/emulated.py                     builds both

ninja rebuilds what changed, under build/emulated/. No torch is needed.
"""

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import kernel_resources
import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "plain": "-O1 -g",
    "sanitized": "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all",
}
COMPILER = os.environ.get("CXX", "g++")
VARIANT = os.environ.get("KD_EMULATED_VARIANT", "plain")  # of this process; set by run_sanitized

NINJA_FILE = """\
flags = -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra {flags} -I{root}/csrc {includes}
rule compile
  command = {compiler} $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} $flags -shared $in -o $out
{objects}
build {module}: link {names}
"""


def build(variant):
    """Path of the module of this variant, brought up to date."""
    folder = ROOT / "build" / "emulated" / variant
    folder.mkdir(parents=True, exist_ok=True)
    module = "kd_emulated" + sysconfig.get_config_var("EXT_SUFFIX")
    sources = sorted((ROOT / "csrc" / "emulated").glob("*.cpp"))
    ninja_file = NINJA_FILE.format(
        compiler=COMPILER,
        flags=VARIANTS[variant],
        root=ROOT,
        includes=" ".join("-isystem " + path for path in (pybind11.get_include(), sysconfig.get_path("include"))),
        objects="\n".join(f"build {source.stem}.o: compile {source}" for source in sources),
        module=module,
        names=" ".join(f"{source.stem}.o" for source in sources),
    )
    with open(folder / "lock", "w") as lock:  # test processes may start side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(ninja_file)
        ninja = subprocess.run([sys.executable, "-m", "ninja", "-C", folder], capture_output=True, text=True)
    if ninja.returncode:
        raise RuntimeError(f"kd_emulated ({variant}) does not build:\n{ninja.stdout}{ninja.stderr}")
    return folder / module


@functools.cache
def module():
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER}")
    path = build(VARIANT)
    spec = importlib.util.spec_from_file_location("kd_emulated", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.set_kernel_resources(kernel_resources.in_module(path))
    return loaded


def runtime_library(name):
    command = [COMPILER, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if os.path.isabs(path) else pytest.skip(f"{COMPILER} has no {name}")


def run_sanitized(arguments):
    """`python arguments...` to its end; stdout and stderr are kept as text."""
    build("sanitized")
    # Python itself is not sanitized, so the runtime has to be there before it. So has the C++ library, in which the
    # runtime looks for the real __cxa_throw.
    preload = " ".join(runtime_library(name) for name in ("libasan.so", "libstdc++.so"))
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "KD_EMULATED_VARIANT": "sanitized",
    }
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)


if __name__ == "__main__":
    for name in VARIANTS:
        print(build(name))
