#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under ten minutes: builds in place with this machine's
# own python3 and nvcc, runs the device tests, the sanitizers and the benchmarks. No network.
#
#     OUT=results-folder scripts/gpu_check.sh [tests|sanitize|bench ...]     (default: all three)
#
# Every step writes OUT/<step>.log and, with its exit status and seconds, a line of OUT/summary.json.
# Without a build nothing else runs; after it a step that fails does not keep the next from running.
# No step runs past the common limit. The exit status says whether all passed.
# PYTHON chooses the interpreter, LIMIT the seconds in all.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?set OUT to the folder for the results}"
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-570}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
: > "$OUT/summary.json"
failed=0
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests sanitize bench)

record() { # record NAME STATUS SECONDS
  [ "$2" = 0 ] || failed=1
  printf '{"step": "%s", "status": %d, "seconds": %d}\n' "$@" | tee -a "$OUT/summary.json"
}

step() { # step NAME LIMIT_SECONDS COMMAND...: at most that long, and not past LIMIT
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  ((limit <= LIMIT - SECONDS)) || limit=$((LIMIT - SECONDS))
  if ((limit < 1)); then
    echo "not run: the $LIMIT s in all are over" > "$OUT/$name.log"
    record "$name" 124 0
    return 124
  fi
  timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
  status=$?
  tail -n 3 "$OUT/$name.log"
  record "$name" $status $((SECONDS - start))
  return $status
}

find_tool() { # on PATH, or in the CUDA installation
  command -v "$1" || ls "${CUDA_HOME:-/usr/local/cuda}/bin/$1" 2> /dev/null
}

stop() {
  echo "gpu_check: $1" >&2
  exit 1
}

for name in "${steps[@]}"; do
  case $name in tests | sanitize | bench) ;; *) stop "expected steps among tests, sanitize, bench, got '$name'" ;; esac
done
nvidia-smi > "$OUT/nvidia-smi.txt" || stop "nvidia-smi says there is no GPU"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)
nvcc=$(find_tool nvcc) || stop "nvcc was not found on PATH, nor in CUDA_HOME"
export CUDACXX=$nvcc
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} # this GPU only: builds in a minute
export GRADKERN_CUDA=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

step build 240 "$PYTHON" setup.py build_ext --inplace || stop "the build failed: see $OUT/build.log"

run_tests() {
  # Some images have no plug-ins for pytest.
  step tests 200 "$PYTHON" -m pytest -q -m "cuda and not slow" tests/cuda -p no:cacheprovider
}

# A small C++ program: python and torch under the sanitizers take many minutes.
run_sanitize() {
  local sanitizer tool
  sanitizer=$(find_tool compute-sanitizer) || {
    echo "compute-sanitizer was not found" > "$OUT/sanitize.log"
    record sanitize 127 0
    return
  }
  step sanitize-build 120 "$nvcc" -std=c++20 -O2 -lineinfo -arch="sm_${capability/./}" -Icsrc \
    -o "$OUT/sanitize_cuda" csrc/tests/sanitize_cuda.cpp csrc/cuda/*.cu || return
  for tool in memcheck racecheck; do
    step "sanitize-$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$OUT/sanitize_cuda"
  done
}

run_bench() {
  step bench 240 "$PYTHON" benchmarks/bench_cuda.py --quick --output "$OUT/bench_cuda.json"
}

for name in "${steps[@]}"; do "run_$name"; done
exit $failed
