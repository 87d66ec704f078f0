#!/usr/bin/env bash
# What a binding is compiled against, without installing torch: torch_headers.sh FOLDER VERSION [VERSION …]
#
# Makes FOLDER/VERSION/torch of the headers and the three libraries that are linked, from torch's wheel for this
# Python (PYTHON=python3.12 chooses another). Then: scripts/build_wheel.sh FOLDER/VERSION …
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
folder="$1"
python="${PYTHON:-python3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
for version in "${@:2}"; do
  rm -rf "$scratch"/* "${folder:?}/$version"
  mkdir -p "$folder/$version"
  "$python" -m pip download --disable-pip-version-check --quiet --no-deps --only-binary :all: -d "$scratch" "torch==$version"
  "$python" - "$scratch"/torch-*.whl "$folder/$version" <<'PY'
import sys
import zipfile

LIBRARIES = ("c10", "torch_cpu", "torch_python")
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wanted = ("torch/include/", "torch/version.py", *(f"torch/lib/lib{name}.so" for name in LIBRARIES))
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(wanted)])
PY
done
