"""What ships: the built libraries as `nm` and `readelf` see them, and the promises of the packaging files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdkernels as kd

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
LIBRARIES = {name: Path(path) for name, path in kd.build_info()["libraries"].items()}
OP_LIBRARIES = [name for name in ("cpu", "cuda") if name in LIBRARIES]

needs_binutils = pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="needs nm and readelf (binutils)"
)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_cpu_and_host_libraries_are_built():
    assert {"cpu", "host"} <= set(LIBRARIES), kd.build_info()["why_not"]


@needs_binutils
@pytest.mark.parametrize("name", OP_LIBRARIES)
def test_op_library_imports_only_the_c_interface_of_torch(name):
    imported = re.findall(r" U (\S+)$", output("nm", "-D", "--undefined-only", str(LIBRARIES[name])), re.MULTILINE)
    # Symbols of libc, libstdc++ and libcudart carry the version they need after an @. Torch versions none of its own, so
    # whatever is bare has to be one of the C functions it promises to keep.
    bare = [symbol for symbol in imported if "@" not in symbol]
    assert any(symbol.startswith("aoti_torch_") for symbol in bare)
    assert [symbol for symbol in bare if not re.match(r"(aoti_)?torch_", symbol)] == []


@needs_binutils
@pytest.mark.parametrize("name", LIBRARIES)
def test_library_needs_no_libtorch_python_and_no_folder_of_the_building_machine(name):
    dynamic = output("readelf", "-d", str(LIBRARIES[name]))
    assert "torch_python" not in dynamic
    assert not re.search("RPATH|RUNPATH", dynamic)


@needs_binutils
@pytest.mark.parametrize("name", LIBRARIES)
def test_library_is_stripped(name):
    assert ".symtab" not in output("readelf", "-S", "--wide", str(LIBRARIES[name]))


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_names_no_path_of_the_building_machine(name):
    binary = LIBRARIES[name].read_bytes()
    for folder in (ROOT, Path(sys.prefix), Path.home()):
        if folder != Path("/"):
            assert f"{folder}/".encode() not in binary


def test_only_one_header_includes_torch():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    include = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10)/', re.MULTILINE)
    assert [path.name for path in sources if include.search(path.read_text())] == ["stable.h"]


def names(requirements) -> set[str]:
    return {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in requirements}


def test_import_needs_torch_and_numpy_alone():
    extras = names(project()["project"]["optional-dependencies"]["trainers"]) - {"scikit-learn"}
    absent = dict.fromkeys(extras | {"sklearn", "scipy", "pybind11", "ninja"})
    output(sys.executable, "-c", f"import sys; sys.modules.update({absent!r}); import kdkernels")


def test_every_dependency_is_pinned():
    metadata = project()
    wanted = metadata["build-system"]["requires"] + metadata["project"]["dependencies"]
    wanted += sum(metadata["project"]["optional-dependencies"].values(), [])
    pinned = re.findall(r"^(\S+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert names(wanted) <= names(pinned)


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"KDKERNELS_CUDA": "yes"}, "KDKERNELS_CUDA must be 0, 1 or unset, got 'yes'"),
        ({"KDKERNELS_CUDA": "1", "CUDA_HOME": "/nowhere"}, "set CUDA_HOME to the root of the CUDA toolkit"),
    ],
)
def test_setup_refuses(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith(message)
