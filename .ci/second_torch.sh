#!/usr/bin/env bash
# One build, many torches: the wheel built under the torch of constraints.txt works under another one. Only what can differ there
# is tested: loading, registration, opcheck, torch.compile, autograd, torch.func, autocast, error messages, one call of each op.
# Usage: .ci/second_torch.sh PYTHON WHEEL
set -euo pipefail
python=$1
wheel=$(realpath "$2")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== torch 2.13.0 in an environment of its own"
"$python" -m venv "$work/venv"
grep -v -E '^(torch|torchvision|triton|nvidia-|cuda-)' "$root/constraints.txt" >"$work/constraints.txt"
"$work/venv/bin/python" -m pip install -q -c "$work/constraints.txt" torch==2.13.0 "kdkernels[test] @ file://$wheel"

# Beside the tests there is no kdkernels folder, so they import what the wheel installed.
mkdir "$work/checkout"
cp -r benchmarks csrc docs tests pyproject.toml setup.py constraints.txt "$work/checkout"
cd "$work/checkout"
"$work/venv/bin/python" -m kdkernels  # one call of each op, against the reference

# Not under another torch: tests of what does not call it (emulated kernels, the host library, benchmarks, pages, nvcc) and of
# trainers, whose torchvision is not installed here.
mapfile -t tests < <(grep -LE 'emulated|host_isa|mark\.trainers|^(from|import) benchmark|README|nvcc' tests/test_*.py)
# Numbers come from the same machine code under every torch: of the numeric tests, those of derivatives and transforms.
dispatch='opcheck or compile or gradcheck or derivatives or vmap or autocast or backward or upstream or learned or same_result'
"$work/venv/bin/python" -m pytest -q -n auto --dist loadfile -k "not numeric or $dispatch" "${tests[@]}"
