"""The resources of each CUDA kernel in the library compiled for sm_90a. csrc/emulated/kernel_resources.json keeps them for the
emulated GPU, which refuses launches that exceed its limits (docs/emulation.md).

    python tests/kernel_resources.py        writes the file from the compiled library

One line per kernel template, with the largest number of any instance: threads of a block (the launch bound), registers per
thread, bytes of static shared memory. Registers are rounded up to a multiple of 32, so that few changes of a kernel change the
file.
"""

import importlib.util
import json
import re
import struct
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc" / "emulated" / "kernel_resources.json"
ARCHITECTURE = "sm_90a"
SYSTEM_SHARED = 1024  # bytes reserved by the system in front of a kernel's own; they count against no limit of a block
TRITON = importlib.util.find_spec("triton")
CUOBJDUMP = Path(TRITON.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if TRITON else Path("none")


def run(*command) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def readable(names: list[str]) -> list[str]:
    """`sweep_kernel<TF32Tiles, true>` of a name that is mangled or not: without namespaces, result and arguments."""
    names = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    names = re.sub(r"kd::(\(anonymous namespace\)::)?", "", names).splitlines()
    return [re.sub(r"\((PeerMix|PeerWeights)\)", "", name).removeprefix("void ").partition("(")[0] for name in names]


def extract_cubins(library: Path, folder: Path) -> list[tuple[str, Path]]:
    """(architecture, file) of each source file and architecture in the library."""
    subprocess.run([CUOBJDUMP, "-xelf", "all", library], cwd=folder, capture_output=True, check=True)
    return [(cubin.suffixes[-2].lstrip("."), cubin) for cubin in sorted(folder.glob("*.cubin"))]


def sections(elf: bytes) -> dict[str, tuple[int, bytes]]:
    """{name: (size, contents)}"""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    each, count, names = struct.unpack_from("<3H", elf, 0x3A)
    headers = [struct.unpack_from("<2I4Q", elf, table + each * i) for i in range(count)]
    text = headers[names][4]
    return {
        elf[text + name : elf.index(b"\0", text + name)].decode(): (size, elf[offset : offset + size])
        for name, _, _, _, offset, size in headers
    }


def launch_bound(attributes: bytes) -> int:
    """Threads of the largest block, from a section .nv.info.KERNEL: (format, attribute, 16 bits) each, in format 4 so many
    bytes more. Attribute 5 is the bound."""
    at = 0
    while at < len(attributes):
        form, attribute, value = struct.unpack_from("<BBH", attributes, at)
        at += 4
        if form == 4:
            if attribute == 5:
                return struct.unpack_from("<I", attributes, at)[0]
            at += value
    return 1024


def kernels_of(cubin: Path) -> dict[str, tuple[int, int, int]]:
    """{mangled name: (threads, registers, static shared memory)}"""
    its = sections(cubin.read_bytes())
    found = re.findall(r"Function (\S+):\n.*?REG:(\d+)", run(CUOBJDUMP, "--dump-resource-usage", cubin))
    return {
        name: (
            launch_bound(its[f".nv.info.{name}"][1]),
            int(registers),
            max(0, its.get(f".nv.shared.{name}", (0, b""))[0] - SYSTEM_SHARED),
        )
        for name, registers in found
    }


def by_template(kernels: dict[str, tuple[int, int, int]]) -> dict[str, list[int]]:
    """{template: [threads, registers, static shared memory]}, the largest number of any instance."""
    most = {}
    for name, figures in zip(readable(list(kernels)), kernels.values()):
        stem = name.partition("<")[0]
        most[stem] = [max(pair) for pair in zip(figures, most.get(stem, figures))]
    return most


def compiled(library: Path, folder: Path) -> dict[str, list[int]]:
    cubins = [cubin for architecture, cubin in extract_cubins(library, folder) if architecture == ARCHITECTURE]
    return by_template({name: figures for cubin in cubins for name, figures in kernels_of(cubin).items()})


def kept() -> dict[str, list[int]]:
    return {name: list(figures.values()) for name, figures in json.loads(TABLE.read_text()).items()}


def write(kernels: dict[str, list[int]]) -> None:
    lines = []
    for name, (threads, registers, static_shared) in sorted(kernels.items()):
        figures = {"threads": threads, "registers": min(255, -(-registers // 32) * 32), "static_shared": static_shared}
        lines.append(f"  {json.dumps(name)}: {json.dumps(figures)}")
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def in_module(module: Path) -> list[tuple[int, str, int, int, int]]:
    """(address in the file, name, threads, registers, static shared memory) of the kernels that the table has, in the
    emulated module."""
    symbols = re.findall(r"^([0-9a-f]+) t (\S+)$", run("nm", "--defined-only", module), re.MULTILINE | re.IGNORECASE)
    names = readable([mangled for _, mangled in symbols])
    table = kept()
    return [
        (int(address, 16), name, *table[stem])
        for (address, _), name in zip(symbols, names)
        if (stem := name.partition("<")[0]) in table
    ]


if __name__ == "__main__":
    import tempfile

    import kdkernels

    with tempfile.TemporaryDirectory() as scratch:
        found = compiled(Path(kdkernels.__file__).with_name("_cuda.abi3.so"), Path(scratch))
    if not found:
        raise SystemExit(f"the CUDA library has nothing for {ARCHITECTURE}: TORCH_CUDA_ARCH_LIST=9.0a python setup.py build_ext --inplace")
    write(found)
    print(f"{TABLE}: {len(found)} kernels")
