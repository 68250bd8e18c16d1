"""What happens where a library is missing, does not load or is not wanted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdkernels as kd
from kdkernels import _backend, _loader

PACKAGE = Path(kd.__file__).parent

# Two losses under one warning filter; prints them, their reference and every warning.
TWO_LOSSES = """
import warnings
import torch, kdkernels as kd
student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    losses = [kd.softened_kl(student, teacher) for _ in range(2)]
assert losses[0] == losses[1] == kd.reference.softened_kl(student, teacher)
print([f"{w.category.__name__}: {w.message}" for w in caught if "kdkernels" in str(w.message)])
"""


def run(folder, *arguments, **environment):
    """Runs Python with the package found in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def without_libraries(tmp_path):
    """A copy of the package without its compiled parts."""
    shutil.copytree(PACKAGE, tmp_path / "kdkernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # An editable install has a finder that would bring the missing parts from the checkout. Python runs this file last.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]\n"
    )
    return tmp_path


def test_missing_library_runs_the_reference_and_warns_once(without_libraries):
    result = run(without_libraries, "-c", TWO_LOSSES)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("RuntimeWarning") == 1
    assert "kdkernels runs its PyTorch reference on cpu" in result.stdout
    assert "the cpu library is not in" in result.stdout
    assert "run `pip install --no-build-isolation .`" in result.stdout


def test_broken_library_is_named_with_the_versions(without_libraries):
    (without_libraries / "kdkernels" / "_cpu.abi3.so").write_text("not a library")
    result = run(without_libraries, "-c", TWO_LOSSES)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("RuntimeWarning") == 1
    assert "_cpu.abi3.so does not load (built for unknown versions; you have torch" in result.stdout


def test_build_info_says_why(without_libraries):
    result = run(without_libraries, "-c", "import kdkernels; print(kdkernels.build_info())")
    assert result.returncode == 0, result.stderr
    info = eval(result.stdout)
    assert info["libraries"] == {}
    assert set(info["why_not"]) == {"cpu", "cuda", "host"}
    assert info["compiler"] is None


def test_asking_for_a_missing_library_is_an_error(without_libraries):
    result = run(without_libraries, "-c", TWO_LOSSES, KDKERNELS_BACKEND="cpu")
    assert "RuntimeError: backend 'cpu' is chosen but the cpu library is not in" in result.stderr


def test_self_check_without_libraries(without_libraries):
    result = run(without_libraries, "-m", "kdkernels")
    assert result.returncode == 0, result.stderr
    assert "no compiled library to check" in result.stdout


def test_self_check_passes():
    result = run(PACKAGE.parent, "-m", "kdkernels")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "self-check of the cpu library: passed" in result.stdout


def test_import_leaves_the_compiler_alone():
    """torch.compile's modules take seconds; who compiles nothing need not wait for them."""
    result = run(PACKAGE.parent, "-c", "import sys, kdkernels; sys.exit('torch._dynamo' in sys.modules)")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "variable, message",
    [
        ("KDKERNELS_BACKEND", "KDKERNELS_BACKEND must be one of auto, reference, cpu, cuda, got 'warp'"),
        ("KDKERNELS_ISA", "KDKERNELS_ISA: instruction set must be one of base"),
    ],
)
def test_wrong_environment_variable(variable, message):
    result = run(PACKAGE.parent, "-c", "import kdkernels", **{variable: "warp"})
    assert f"ValueError: {message}" in result.stderr


def test_isa_is_forced_in_both_copies():
    program = "import kdkernels as kd; print(kd.build_info()['cpu_isa'], kd._loader.host.cpu_isa())"
    assert run(PACKAGE.parent, "-c", program, KDKERNELS_ISA="base").stdout.split() == ["base", "base"]


def test_wrong_isa_is_refused_by_host():
    with pytest.raises(ValueError, match="must be one of base.* got mmx"):
        _loader.host.set_isa("mmx")


def test_backend_is_restored():
    with pytest.raises(KeyError), kd.backend("reference"):
        assert not _backend.use_library("kd_loss", torch.empty(0))
        assert kd.build_info()["backend"] == "reference"
        raise KeyError
    assert _backend.choice() == "auto"


def test_backend_entered_again():
    reference = kd.backend("reference")
    for _ in range(2):
        with reference:
            with reference, kd.backend("cpu"), reference:
                assert _backend.choice() == "reference"
            assert _backend.choice() == "reference"
        assert _backend.choice() == "auto"


def test_backend_refuses_unknown_names():
    with pytest.raises(ValueError, match="backend: name must be one of auto, reference, cpu, cuda, got 'gpu'"):
        kd.backend("gpu")


def test_backend_of_another_device():
    with kd.backend("cuda"), pytest.raises(RuntimeError, match="backend 'cuda' is chosen but the tensors are on cpu"):
        _backend.use_library("kd_loss", torch.empty(0))


def branch(x):
    return x * 2 if _backend.use_library("branch", x) else x * 3


def test_backend_under_compile():
    compiled = torch.compile(branch, fullgraph=True, backend="eager")
    x = torch.ones(2)
    assert compiled(x)[0] == 2
    with kd.backend("reference"):
        assert compiled(x)[0] == 3
    assert compiled(x)[0] == 2


def test_backend_inside_compile():
    def inside(x):
        with kd.backend("reference"):
            return branch(x)

    assert torch.compile(inside, fullgraph=True, backend="eager")(torch.ones(2))[0] == 3
    assert _backend.choice() == "auto"


def test_no_library_under_compile():
    # No library serves meta tensors. A graph has no place for a warning, so none may break it.
    compiled = torch.compile(branch, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2, device="meta")).shape == (2,)
