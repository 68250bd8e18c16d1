"""The compiled CUDA kernels as cuobjdump of the triton package sees them: stacks, 16-byte loads, tensor cores. Needs no GPU."""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import kdkernels as kd

LIBRARY = Path(kd.__file__).with_name("_cuda.abi3.so")
TRITON = importlib.util.find_spec("triton")
CUOBJDUMP = Path(TRITON.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if TRITON else Path("none")

pytestmark = pytest.mark.skipif(
    not (LIBRARY.exists() and CUOBJDUMP.exists() and shutil.which("c++filt")),
    reason="needs the CUDA library, cuobjdump (triton) and c++filt (binutils)",
)

# Bytes of stack that kernels use, as nvcc 13.0 compiles them; every other kernel that does not compute in float64 has none.
# A figure may only be made smaller. Architectures that are not listed are not judged.
STACKS = {
    "sm_90a": {
        # Two matrices of sums, the student's and the teacher's, are more than a thread's registers hold.
        "sweep_kernel<ThreadTiles<float>, true>": 208,
        "sweep_kernel<TF32Tiles, true>": 112,
        "sweep_kernel<HalfTiles, true>": 128,
        "sweep_kernel<BFloat16Tiles, true>": 128,
        # Two blocks per multiprocessor leave a thread 128 registers.
        "band_kernel<TF32Tiles, float, false>": 16,
        "products_kernel<TF32Tiles, false>": 40,
        "products_kernel<TF32Tiles, true>": 88,
        "products_kernel<BFloat16Tiles, true>": 64,
        # One thread per row, for classes that are no neighbours.
        "lane_rows_kernel<float, LabelTarget, ForwardKL<float>, Streamed<float> >": 16,
        "lane_rows_kernel<float, LogitsTarget, JensenShannon<float>, Streamed<float> >": 16,
    },
}

# Whose instructions are looked at, one per launch form and tile: to disassemble all would take minutes.
ROWS = re.compile(r"(lane|block)_rows_kernel<float, LogitsTarget, ForwardKL<float>|(lane|block)_statistics_kernel<float>")
BANKS = re.compile(r"bank_(scores|exponentials)_kernel<float")
TILES = re.compile(r"(sweep|band|products)_kernel<(TF32|Half|BFloat16)Tiles.*false>")
# An address in a comment, maybe a predicate, the name.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\S+ )?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


def run(*command) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def readable(mangled: list[str]) -> list[str]:
    """`sweep_kernel<TF32Tiles, true>`: the name without namespaces, result and arguments."""
    names = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = re.sub(r"kd::(\(anonymous namespace\)::)?", "", names).splitlines()
    return [re.sub(r"\((PeerMix|PeerWeights)\)", "", name).removeprefix("void ").partition("(")[0] for name in names]


@pytest.fixture(scope="session")
def cubins(tmp_path_factory) -> list[tuple[str, Path, dict[str, str]]]:
    """(architecture, file, {mangled name: resources}) of each source file and architecture in the library."""
    folder = tmp_path_factory.mktemp("cubins")
    subprocess.run([CUOBJDUMP, "-xelf", "all", LIBRARY], cwd=folder, capture_output=True, check=True)
    found = []
    for cubin in sorted(folder.glob("*.cubin")):
        resources = re.findall(r"Function (\S+):\n\s*(.+)", run(CUOBJDUMP, "--dump-resource-usage", cubin))
        found.append((cubin.suffixes[-2].lstrip("."), cubin, dict(resources)))
    return found


@pytest.fixture(scope="session")
def instructions(cubins) -> dict[str, Counter]:
    """Of the kernels of ROWS, BANKS and TILES: how often each instruction stands in them, on one architecture that has
    tensor cores for TF32."""
    able = {architecture for architecture, _, _ in cubins} - {"sm_75"}
    architecture = "sm_90a" if "sm_90a" in able else min(able, default=None)
    found = {}
    for its, cubin, resources in cubins:
        names = dict(zip(resources, readable(list(resources))))
        wanted = [mangled for mangled, name in names.items() if any(kind.match(name) for kind in (ROWS, BANKS, TILES))]
        if its != architecture or not wanted:
            continue
        text = run(CUOBJDUMP, "-sass", "-fun", ",".join(wanted), cubin)
        for mangled, body in re.findall(r"Function : (\S+)\n(.*?)(?=Function :|\Z)", text, re.DOTALL):
            found[names[mangled]] = Counter(INSTRUCTION.findall(body))
    if not found:
        pytest.skip("no architecture with tensor cores for TF32 in the library")
    return found


def of_kind(instructions, kind, *prefixes):
    """{kernel: how many instructions of these prefixes}"""
    kernels = {name: counts for name, counts in instructions.items() if kind.match(name)}
    return {
        name: sum(count for word, count in counts.items() if re.match("|".join(prefixes), word))
        for name, counts in kernels.items()
    }


def test_the_library_is_of_these_sources(cubins):
    """One object per source file and architecture: else what follows would look at an older build."""
    sources = list((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
    assert len(cubins) == len(sources) * len({architecture for architecture, _, _ in cubins})


def stacks(cubins, architecture) -> dict[str, int]:
    """Bytes, of the kernels that do not compute in float64."""
    found = {}
    for its, _, resources in cubins:
        if its == architecture:
            sizes = (int(re.search(r"STACK:(\d+)", resource)[1]) for resource in resources.values())
            found |= zip(readable(list(resources)), sizes)
    return {name: size for name, size in found.items() if "double" not in name}


@pytest.mark.parametrize("architecture", STACKS)
def test_no_kernel_uses_more_stack_than_is_known(cubins, architecture):
    found, known = stacks(cubins, architecture), STACKS[architecture]
    if not found:
        pytest.skip(f"the library has nothing for {architecture}")
    assert {name: size for name, size in found.items() if size > known.get(name, 0)} == {}
    # A kernel that is gone, or needs less by now: what was won is kept.
    assert {name: found.get(name) for name in known if found.get(name) != known[name]} == {}


def test_rows_and_banks_are_read_16_bytes_at_a_time(instructions):
    wide = of_kind(instructions, ROWS, r"LDG\.E.*128") | of_kind(instructions, BANKS, r"LDG\.E.*128")
    assert len(wide) >= 10
    assert [name for name, count in wide.items() if not count] == []


def test_gradients_are_written_16_bytes_at_a_time(instructions):
    wide = {name: count for name, count in of_kind(instructions, ROWS, r"STG\.E.*128").items() if "statistics" not in name}
    assert len(wide) == 4
    assert [name for name, count in wide.items() if not count] == []


def test_similarity_tiles_are_read_wide_and_multiplied_on_tensor_cores(instructions):
    for words in (r"HMMA|HGMMA", r"LDG?\.E.*128|LDGSTS\.E.*128"):
        found = of_kind(instructions, TILES, words)
        assert len(found) == 8
        assert [name for name, count in found.items() if not count] == []
