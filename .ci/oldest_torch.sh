#!/usr/bin/env bash
# The op libraries compile against the headers of the oldest torch that is supported, in the C++ standard of its time.
# Usage: .ci/oldest_torch.sh PYTHON [TORCH_INCLUDE]   (without TORCH_INCLUDE the headers are taken from torch 2.10.0's wheel)
set -euo pipefail
python=$1
include=${2-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "$include" ]; then
    "$python" -m pip download -q --no-deps --dest "$work" torch==2.10.0
    "$python" - "$work" <<'END'
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/torch-*.whl")[0])
wheel.extractall(sys.argv[1], [name for name in wheel.namelist() if name.startswith("torch/include/")])
END
    include=$work/torch/include
fi
flags=(-std=c++17 -DTORCH_TARGET_VERSION=0x020a000000000000 -Icsrc "-I$include" -c -o /dev/null)
# The command for each file that is listed, one per core at a time.
each() { xargs -P "$(nproc)" -I {} sh -c 'echo {}; exec "$@" {}' -- "$@"; }
printf '%s\n' csrc/library.cpp csrc/cpu/*.cpp | each c++ -fsyntax-only -fvisibility=hidden -Wall "${flags[@]}"
# What is asked is whether it compiles, so the optimisers may rest.
if command -v nvcc >/dev/null; then
    printf '%s\n' csrc/cuda/*.cu | each nvcc -arch=sm_80 -Xcicc -O0 -Xptxas -O0 -DUSE_CUDA "${flags[@]}"
fi
