#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under ten minutes: builds in place with this machine's
# own python3 and nvcc, runs the device tests, the sanitizers and the benchmarks. No network.
#
#     OUT=results-folder scripts/gpu_check.sh [tests|sanitize|bench ...]     (default: all three)
#
# Every step writes OUT/<step>.log and goes on when another one failed; the exit status says whether
# all passed. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?set OUT to the folder for the results}"
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
failed=0
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests sanitize bench)

step() {  # step NAME LIMIT_SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
  local status=$?
  [ $status -eq 0 ] || failed=1
  echo "$name: exit $status, $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
  tail -n 3 "$OUT/$name.log"
}

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}  # this GPU only: builds in a minute
export GRADKERN_CUDA=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
nvidia-smi > "$OUT/nvidia-smi.txt"
: > "$OUT/summary.txt"

# Some images have no ninja for the build, and no plug-ins for pytest.
step build 240 "$PYTHON" setup.py build_ext --inplace || true

run_tests() {
  step tests 240 "$PYTHON" -m pytest -q -m cuda tests/cuda -p no:cacheprovider
}

# A small C++ program: python and torch under the sanitizers take many minutes.
run_sanitize() {
  local arch=sm_${capability/./}
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
  if [ -z "$sanitizer" ]; then
    echo "sanitize: compute-sanitizer was not found, not run" | tee -a "$OUT/summary.txt"
    failed=1
    return
  fi
  step sanitize-build 120 nvcc -std=c++20 -O2 -lineinfo -arch="$arch" -Icsrc -o "$OUT/sanitize_cuda" \
    csrc/tests/sanitize_cuda.cpp csrc/cuda/*.cu
  for tool in memcheck racecheck; do
    step "sanitize-$tool" 100 "$sanitizer" --tool "$tool" --error-exitcode 9 "$OUT/sanitize_cuda"
  done
}

run_bench() {
  step bench 240 "$PYTHON" benchmarks/bench_cuda.py --quick --output "$OUT/bench_cuda.json"
}

for name in "${steps[@]}"; do "run_$name"; done
cat "$OUT/summary.txt"
exit $failed
