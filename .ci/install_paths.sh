#!/usr/bin/env bash
# Every way to install: an sdist that rebuilds under isolation (for all architectures), editable, a wheel without isolation.
# Each result must import and pass its self-check outside the checkout.  Usage: .ci/install_paths.sh PYTHON WHEEL_FOLDER
set -euo pipefail
python=$(realpath -s "$1")
wheels=$(realpath -m "$2")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_CONSTRAINT=$root/constraints.txt
unset TORCH_CUDA_ARCH_LIST  # all of them, whatever the caller builds for

pip() { "$python" -m pip -q "$@"; }
self_check() { (cd "$work" && PYTHONPATH=${1-} "$python" -m kdkernels); }

echo "== sdist"
"$python" -m build --sdist --no-isolation --outdir "$work" . >"$work/sdist.log" || { cat "$work/sdist.log"; exit 1; }

echo "== pip install SDIST, isolated, all architectures"
time pip install --no-deps --target "$work/isolated" "$work"/kdkernels-*.tar.gz
self_check "$work/isolated"

echo "== editable, as make installed it: CUDA without isolation"
self_check

# `pip install --no-build-isolation .` in two steps. The checkout has the objects already; without CUDA, because the torch of
# .ci/second_torch.sh has none.
echo "== wheel without isolation and without CUDA, also for .ci/second_torch.sh"
time KDKERNELS_CUDA=0 pip wheel --no-deps --no-build-isolation --wheel-dir "$wheels" .
ls -l "$wheels"
pip install --no-deps --target "$work/plain" "$wheels"/kdkernels-*.whl
self_check "$work/plain"
