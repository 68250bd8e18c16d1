#!/usr/bin/env bash
# One build, many torches: the wheel built under the torch of constraints.txt passes the tests under another one.
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
"$work/venv/bin/python" -m kdkernels
# Emulated kernels and the host library know no torch, old or new; torchvision, which the trainers need, is not there.
mapfile -t tests < <(grep -LE 'emulated|host_isa|mark\.trainers' tests/test_*.py)
"$work/venv/bin/python" -m pytest -q -n auto --dist loadfile "${tests[@]}"
