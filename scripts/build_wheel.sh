#!/usr/bin/env bash
# One wheel for this Python with a binding for each of several versions of torch.
#
#   PYTHON=python3.12 scripts/build_wheel.sh FOLDER [FOLDER …]
#
# Each FOLDER holds a `torch` folder: the site-packages of an environment, or an unpacked wheel of torch
# (pip download --no-deps torch==2.14.1, then unzip): only its headers and libraries are read.
# The architectures are those of TORCH_CUDA_ARCH_LIST, "all" by default. The wheel is audited afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
python="${PYTHON:-python3}"
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-all}"
GRADKERN_TORCH="$(IFS=:; echo "$*")"
export GRADKERN_TORCH

"$python" -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
wheel="$(ls -t dist/gradkern-*.whl | head -n 1)"

# What a wheel must not have: a path of the machine that built it, a library of torch or OpenMP of its own.
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"$python" -m zipfile -e "$wheel" "$scratch"
for binding in "$scratch"/gradkern/_C.torch-*.so; do
  if grep -qaF "$PWD" "$binding"; then echo "$binding names $PWD"; exit 1; fi
  if readelf -d "$binding" | grep -E 'RPATH|RUNPATH|libgomp'; then echo "$binding: see above"; exit 1; fi
  needs="$(readelf -V "$binding" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)"
  printf '%s  %s bytes, needs %s\n' "$(basename "$binding")" "$(stat -c %s "$binding")" "$needs"
done
echo "$wheel"
