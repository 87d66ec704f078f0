#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under ten minutes: builds in place with this machine's
# own python3 and nvcc, runs the device tests, the sanitizers and the benchmarks. No network.
#
#     OUT=results-folder scripts/gpu_check.sh [tests|sanitize|bench ...]     (default: all, in this order)
#
# Every step appends its output to OUT/log.txt; OUT/summary.json has the exit status and seconds of each and
# the goals that were missed (missed_bars; null if none were judged), OUT/bench_cuda.json the measurements,
# OUT/nvidia-smi.txt the machine. If the build fails, nothing else runs; the other steps run even if an earlier
# one fails. Every step has its share of the common limit, plus what earlier ones left over. The exit status is 1
# if a step failed (also "failed" in the summary), 3 if none did but a goal was missed, otherwise 0. PYTHON chooses
# the interpreter, LIMIT the seconds in all. The benchmark measures Apex, Transformer Engine and NeMo Automodel,
# too, where they are installed, and says how to install those that are missing.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
: "${OUT:?set OUT to the folder for the results}"
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-570}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
rm -f "$OUT/summary.json" "$OUT/log.txt" "$OUT/bench_cuda.json"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
bars_missed=3 # the exit status of cuda_bars.py for missed goals
missed=0
summary=()
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests sanitize bench)

# The seconds reserved for each step; together they fit LIMIT.
declare -A share=([build]=190 [tests]=90 [sanitize-memcheck]=25 [sanitize-racecheck]=25 [sanitize-initcheck]=20
  [sanitize-synccheck]=20 [bench]=150 [bench-bars]=5 [bench-predictions]=5 [bench-accumulation]=10)

record() { # record NAME STATUS SECONDS
  case "$1 $2" in
    *" 0") ;;
    "bench-bars $bars_missed") missed=1 ;;
    *) failed=1 ;;
  esac
  summary+=("$(printf '{"step": "%s", "status": %d, "seconds": %d}' "$@")")
  echo "${summary[-1]}"
  # Written at every step, so that an interrupted run keeps its results.
  {
    printf '{"steps": [\n %s' "${summary[0]}"
    [ ${#summary[@]} = 1 ] || printf ',\n %s' "${summary[@]:1}"
    printf '\n], "seconds": %d, "limit": %d, "failed": %d,\n' "$SECONDS" "$LIMIT" "$failed"
    printf '"missed_bars": %s}\n' "$(cat "$scratch/missed.json" 2> /dev/null || echo null)"
  } > "$OUT/summary.json"
}

find_limit() { # find_limit STEP: sets `limit` to what later steps do not need, at least its own share
  local own=${share[$1]-0} left=$((LIMIT - SECONDS)) name
  limit=$left
  unset "share[$1]"
  for name in "${!share[@]}"; do
    case " ${steps[*]} " in *" ${name%%-*} "*) limit=$((limit - ${share[$name]})) ;; esac
  done
  ((limit > own)) || limit=$own
  limit=$((limit < left ? limit : left))
}

step() { # step NAME COMMAND...
  local name=$1 start=$SECONDS status limit
  shift
  find_limit "$name"
  if ((limit < 1)); then
    printf '\n== %s\nnot run: the %s s in all are over\n' "$name" "$LIMIT" >> "$OUT/log.txt"
    record "$name" 124 0
    return 124
  fi
  printf '\n== %s\n' "$name" >> "$OUT/log.txt"
  timeout "$limit" "$@" >> "$OUT/log.txt" 2>&1
  status=$?
  tail -n 3 "$OUT/log.txt"
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
export PYTHON nvcc scratch arch="sm_${capability/./}"

# All that is compiled, side by side, because measure.cu takes most of a minute each time. If a program is missing, the
# step that runs it fails.
# shellcheck disable=SC2317
build_all() {
  local extension way
  "$PYTHON" setup.py build_ext --inplace &
  extension=$!
  case " $* " in *" sanitize "*)
    # A small C++ program: python and torch under the sanitizers take many minutes.
    "$nvcc" -std=c++20 -O2 -fmad=false -lineinfo -t 0 -arch="$arch" -Icsrc -o "$scratch/sanitize_cuda" \
      csrc/tests/sanitize_cuda.cpp csrc/cuda/*.cu &
    ;;
  esac
  case " $* " in *" bench "*)
    for way in 0 1; do # both ways of adding squares
      "$nvcc" -std=c++20 -O3 -fmad=false -arch="$arch" -Icsrc -DGRADKERN_COMPENSATED=$way -o "$scratch/accumulation_$way" \
        benchmarks/accumulation.cu csrc/cuda/measure.cu csrc/cuda/tensor_table.cu &
    done
    ;;
  esac
  wait $extension
  local status=$?
  wait
  return $status
}
export -f build_all
# shellcheck disable=SC2016
step build bash -c 'build_all "$@"' bash "${steps[@]}" || stop "the build failed: see $OUT/log.txt"

# The functions below are called by name: run_STEP.
# shellcheck disable=SC2317
run_tests() {
  # Some images have no plug-ins for pytest.
  step tests "$PYTHON" -m pytest -q -m "cuda and not slow" tests/cuda -p no:cacheprovider
}

# shellcheck disable=SC2317
run_sanitize() {
  local sanitizer tool
  sanitizer=$(find_tool compute-sanitizer) || {
    printf '\n== sanitize\ncompute-sanitizer was not found\n' >> "$OUT/log.txt"
    record sanitize 127 0
    return
  }
  for tool in memcheck racecheck initcheck synccheck; do
    step "sanitize-$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$scratch/sanitize_cuda"
  done
}

# shellcheck disable=SC2317
run_bench() {
  step bench "$PYTHON" benchmarks/bench_cuda.py --quick --output "$OUT/bench_cuda.json"
  grep '^peer .*: not here' "$OUT/log.txt"
  step bench-bars "$PYTHON" benchmarks/cuda_bars.py "$OUT/bench_cuda.json" --missed "$scratch/missed.json"
  grep '^MISSED' "$OUT/log.txt"
  step bench-predictions "$PYTHON" scripts/predict_cuda.py --measured "$OUT/bench_cuda.json"
  # shellcheck disable=SC2016
  step bench-accumulation bash -c '"$scratch/accumulation_0" && "$scratch/accumulation_1"'
}

for name in "${steps[@]}"; do "run_$name"; done
[ $failed = 0 ] || exit 1
[ $missed = 0 ] || exit $bars_missed
