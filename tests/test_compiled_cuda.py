"""The compiled CUDA kernels as cuobjdump of the triton package sees them: registers, stacks, 16-byte accesses, tensor cores.
Needs no GPU."""

import re
import shutil
from collections import Counter
from pathlib import Path

import kernel_resources
import pytest
from kernel_resources import CUOBJDUMP, readable, run

import kdkernels as kd

LIBRARY = Path(kd.__file__).with_name("_cuda.abi3.so")

pytestmark = pytest.mark.skipif(
    not (LIBRARY.exists() and CUOBJDUMP.exists() and shutil.which("c++filt")),
    reason="needs the CUDA library, cuobjdump (triton) and c++filt (binutils)",
)

# Bytes of stack that kernels use, as nvcc 13.0 compiles them: none, but for those that compute in float64 and any listed here
# by name. A figure may only be made smaller. Architectures that are not listed are not judged.
STACKS = {
    "sm_90a": {
        "general_rows_kernel<float, RowTeam, Staged<float, true> >": 24,
        "general_rows_kernel<float, RowTeam, Streamed<float, true> >": 48,
    }
}

# Registers that let as many blocks on a multiprocessor, which has 65,536, as the launch is planned for.
REGISTERS = {
    re.compile(r"(sweep|band)_kernel<(TF32|Half|BFloat16)Tiles.*false>"): 65536 // (2 * 256),
    re.compile(r"products_kernel<(TF32|BFloat16)Tiles"): 65536 // (2 * 256),
    re.compile(r"forward_lanes_kernel<float, Held"): 65536 // (4 * 128),
    re.compile(r"(forward_clusters|[a-z]+_rows)_kernel<float"): 65536 // 512,
    re.compile(r"peer_(ensemble|mixture|mixture_backward)_kernel"): 65536 // 512,
}

# Whose instructions are looked at, one per launch form and tile: to disassemble all would take minutes.
ROWS = re.compile(r"forward_(lanes|clusters)_kernel<float|(lane|block)_statistics_kernel<float>")
BANKS = re.compile(r"bank_(scores|exponentials)_kernel<float")
TILES = re.compile(r"(sweep|band|products)_kernel<(TF32|Half|BFloat16)Tiles.*false>")
PEERS = re.compile(r"peer_(ensemble|mixture|mixture_backward)_kernel<float")
# What touches every number once.
ONCE = re.compile(r"(finish|inverse_norms|scale_gradients)_kernel<float>")
# An address in a comment, maybe a predicate, the name.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\S+ )?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


@pytest.fixture(scope="session")
def cubins(tmp_path_factory) -> list[tuple[str, Path, dict[str, str]]]:
    """(architecture, file, {mangled name: resources}) of each source file and architecture in the library."""
    return [
        (architecture, cubin, dict(re.findall(r"Function (\S+):\n\s*(.+)", run(CUOBJDUMP, "--dump-resource-usage", cubin))))
        for architecture, cubin in kernel_resources.extract_cubins(LIBRARY, tmp_path_factory.mktemp("cubins"))
    ]


@pytest.fixture(scope="session")
def instructions(cubins) -> dict[str, Counter]:
    """Of the kernels of ROWS, BANKS, TILES, PEERS and ONCE: how often each instruction stands in them, on one architecture
    that has tensor cores for TF32."""
    able = {architecture for architecture, _, _ in cubins} - {"sm_75"}
    architecture = "sm_90a" if "sm_90a" in able else min(able, default=None)
    found = {}
    for its, cubin, resources in cubins:
        names = dict(zip(resources, readable(list(resources))))
        kinds = (ROWS, BANKS, TILES, PEERS, ONCE)
        wanted = [mangled for mangled, name in names.items() if any(kind.match(name) for kind in kinds)]
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


def resources_of(cubins, architecture, what) -> dict[str, int]:
    """STACK: bytes, REG: registers; of the kernels that do not compute in float64."""
    found = {}
    for its, _, resources in cubins:
        if its == architecture:
            sizes = (int(re.search(rf"{what}:(\d+)", resource)[1]) for resource in resources.values())
            found |= zip(readable(list(resources)), sizes)
    return {name: size for name, size in found.items() if "double" not in name}


@pytest.mark.parametrize("architecture", STACKS)
def test_no_kernel_uses_more_stack_than_is_known(cubins, architecture):
    found, known = resources_of(cubins, architecture, "STACK"), STACKS[architecture]
    if not found:
        pytest.skip(f"the library has nothing for {architecture}")
    assert {name: size for name, size in found.items() if size > known.get(name, 0)} == {}
    # A kernel that is gone, or needs less by now: what was won is kept.
    assert {name: found.get(name) for name in known if found.get(name) != known[name]} == {}


@pytest.mark.parametrize("kind", REGISTERS, ids=lambda kind: kind.pattern)
def test_registers_let_the_planned_blocks_on_a_multiprocessor(cubins, kind):
    judged = {architecture for architecture, _, _ in cubins} & STACKS.keys()
    if not judged:
        pytest.skip("the library has nothing for an architecture that is judged")
    for architecture in judged:
        found = {name: n for name, n in resources_of(cubins, architecture, "REG").items() if kind.match(name)}
        assert found and {name: n for name, n in found.items() if n > REGISTERS[kind]} == {}


def test_the_emulated_gpu_knows_what_kernels_take(cubins):
    """If the numbers differ: python tests/kernel_resources.py"""
    found = {}
    for architecture, cubin, _ in cubins:
        if architecture == kernel_resources.ARCHITECTURE:
            found |= kernel_resources.kernels_of(cubin)
    if not found:
        pytest.skip(f"the library has nothing for {kernel_resources.ARCHITECTURE}")
    found, kept = kernel_resources.by_template(found), kernel_resources.kept()
    exact = {name: (threads, static_shared) for name, (threads, _, static_shared) in found.items()}
    assert exact == {name: (threads, static_shared) for name, (threads, _, static_shared) in kept.items()}
    assert {name: registers for name, (_, registers, _) in found.items() if registers > kept[name][1]} == {}


@pytest.mark.parametrize("kind, least", [(ROWS, 6), (BANKS, 4), (TILES, 8), (PEERS, 7), (ONCE, 3)])
def test_memory_is_read_16_bytes_at_a_time(instructions, kind, least):
    wide = of_kind(instructions, kind, r"LDG\.E.*128|LDGSTS\.E.*128")
    assert len(wide) >= least
    assert [name for name, count in wide.items() if not count] == []


def test_gradients_are_written_16_bytes_at_a_time(instructions):
    found = of_kind(instructions, ROWS, r"STG\.E.*128") | of_kind(instructions, ONCE, r"STG\.E.*128")
    wide = {name: count for name, count in found.items() if not re.search("statistics|inverse_norms", name)}
    assert len(wide) == 4 + 2
    assert [name for name, count in wide.items() if not count] == []


def test_staged_rows_come_by_copies_and_are_shared_by_clusters(instructions):
    for words in (r"LDGSTS\.E.*128", "UCGABAR_ARV", "UCGABAR_WAIT"):
        (count,) = of_kind(instructions, re.compile("forward_clusters_kernel<.*Staged"), words).values()
        assert count


def test_similarities_come_by_copies_and_are_multiplied_on_tensor_cores(instructions):
    """Tiles go to shared memory without passing through registers, and from there as the matrices that fragments are."""
    for words in (r"LDGSTS\.E.*128", r"LDSM\.16\.M88\.4", r"HMMA|HGMMA"):
        found = of_kind(instructions, TILES, words)
        assert len(found) == 8
        assert [name for name, count in found.items() if not count] == []


def test_bands_and_products_are_written_16_bytes_at_a_time(instructions):
    wide = {name: count for name, count in of_kind(instructions, TILES, r"STG\.E.*128").items() if "sweep" not in name}
    assert len(wide) == 5
    assert [name for name, count in wide.items() if not count] == []
