#!/usr/bin/env bash
# Checks a wheel for users: audit_wheel.sh WHEEL [BINDINGS].
#
# It has one library of kernels, which links neither torch nor Python nor OpenMP, BINDINGS bindings that find
# it beside themselves, and no path of the machine that built it. Prints sizes and the oldest glibc it runs
# with.
set -euo pipefail
wheel="$1"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python3 -m zipfile -e "$wheel" "$scratch"
fail() { echo "$(basename "$wheel"): $1"; exit 1; }

kernels="$scratch/gradkern/lib/libgradkern_kernels.so"
[ "$(find "$scratch" -name '*.so*' | grep -c kernels)" = 1 ] && [ -e "$kernels" ] || fail "expected the kernels once, in lib/"
if readelf -d "$kernels" | grep -E 'RPATH|RUNPATH|NEEDED.*(torch|c10|python|gomp|omp\.)'; then fail "the kernels link the above"; fi
bindings=("$scratch"/gradkern/_C.torch-*.so)
[ "${#bindings[@]}" = "${2:-${#bindings[@]}}" ] || fail "expected $2 bindings, got ${#bindings[*]}"
for binding in "${bindings[@]}"; do
  path="$(readelf -d "$binding" | sed -n 's/.*R\(UN\)\?PATH.*\[\(.*\)\]/\2/p')"
  [ "$path" = "\$ORIGIN/lib" ] || fail "$(basename "$binding") looks for libraries in $path"
  if readelf -d "$binding" | grep -E 'NEEDED.*(libgomp|libomp|libtorch_cuda|libpython)'; then fail "the binding links the above"; fi
done
for file in "$kernels" "${bindings[@]}"; do
  if grep -qaF -e "$PWD" -e "$HOME/" "$file"; then fail "$(basename "$file") names a folder of this machine"; fi
  needs="$(readelf -V "$file" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)"
  printf '%-55s %10s bytes  needs %s\n' "$(basename "$file")" "$(stat -c %s "$file")" "$needs"
done
printf '%-55s %10s bytes\n' "$(basename "$wheel")" "$(stat -c %s "$wheel")"
