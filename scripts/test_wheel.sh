#!/usr/bin/env bash
# A wheel, installed into a fresh environment and tested there without the checkout:
#
#   scripts/test_wheel.sh WHEEL PYTHON [PYTEST ARGUMENT …]
#
# PYTHON is the interpreter of an environment with torch and what the tests need; its packages are seen, not
# installed again. So one wheel can be tried with each version of torch that it has a binding for.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
root="$(cd "$(dirname "$0")/.." && pwd)"
wheel="$(realpath "$1")"
python="$2"
shift 2
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -m venv "$scratch/venv"
"$python" -c "$packages" >"$("$scratch/venv/bin/python" -c "$packages")/base.pth"
cp -r "$root/tests" "$root/cmake" "$root/pyproject.toml" "$scratch/"
cd "$scratch"
unset PYTHONPATH
venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheel"
venv/bin/gradkern info
venv/bin/python - <<'PY'
import sys
from pathlib import Path

from gradkern.kernels import extension

assert Path(extension.__file__).is_relative_to(sys.prefix), extension.__file__
assert extension.EXTENSION is not None, extension.REASON
PY
if [ $# -gt 0 ]; then venv/bin/python -m pytest -q -p no:cacheprovider "$@"; fi
