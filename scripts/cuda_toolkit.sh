#!/usr/bin/env bash
# nvcc and what it needs to compile the kernels, from NVIDIA's packages on PyPI: cuda_toolkit.sh FOLDER
#
# For machines and containers without a CUDA toolkit. nvcc is then FOLDER/nvidia/cu13/bin/nvcc.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; }
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --target "$1" \
  nvidia-cuda-nvcc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-crt==13.0.* nvidia-nvvm==13.0.* nvidia-cuda-cccl==13.0.*
ln -sfn lib "$1/nvidia/cu13/lib64" # where nvcc looks
