#!/usr/bin/env bash
# One wheel for this Python: the kernels once, and a binding for each of several versions of torch.
#
#   PYTHON=python3.12 scripts/build_wheel.sh FOLDER [FOLDER …]
#
# Each FOLDER holds a `torch` folder: the site-packages of an environment, or what scripts/torch_headers.sh makes.
# TORCH_CUDA_ARCH_LIST chooses the architectures, "all" by default. The wheel in dist/ is audited afterwards:
# what it links, paths of this machine, its size, the oldest glibc it runs with.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
python="${PYTHON:-python3}"
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-all}"
GRADKERN_TORCH="$(IFS=:; echo "$*")"
export GRADKERN_TORCH

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir "$scratch/wheel" .
bash scripts/audit_wheel.sh "$scratch"/wheel/gradkern-*.whl $#
mkdir -p dist
mv "$scratch"/wheel/gradkern-*.whl dist/
ls -t dist/gradkern-*.whl | head -n 1
