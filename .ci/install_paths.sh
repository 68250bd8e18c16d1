#!/usr/bin/env bash
# Every way to install: an sdist that rebuilds under isolation (for all architectures), without isolation, editable, a wheel.
# Each result must import and pass its self-check outside the checkout.  Usage: .ci/install_paths.sh PYTHON WHEEL_FOLDER
set -euo pipefail
python=$(realpath -s "$1")
wheels=$(realpath -m "$2")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_CONSTRAINT=$root/constraints.txt
export TORCH_CUDA_ARCH_LIST=9.0a  # but for the one build that is asked for all architectures

pip() { "$python" -m pip -q "$@"; }
self_check() { (cd "$work" && PYTHONPATH=${1-} "$python" -m kdkernels); }

echo "== sdist"
"$python" -m build --sdist --no-isolation --outdir "$work" . >"$work/sdist.log" || { cat "$work/sdist.log"; exit 1; }
mkdir "$work/source"
tar xzf "$work"/kdkernels-*.tar.gz -C "$work/source" --strip-components=1

echo "== pip install SDIST, isolated, all architectures"
time (unset TORCH_CUDA_ARCH_LIST; pip install --no-deps --target "$work/isolated" "$work"/kdkernels-*.tar.gz)
self_check "$work/isolated"

echo "== pip install --no-build-isolation"
time pip install --no-deps --no-build-isolation --target "$work/plain" "$work/source"
self_check "$work/plain"

echo "== editable, as make installed it"
self_check

echo "== wheel without CUDA, for .ci/second_torch.sh"
KDKERNELS_CUDA=0 pip wheel --no-deps --no-build-isolation --wheel-dir "$wheels" "$work/source"
ls -l "$wheels"
