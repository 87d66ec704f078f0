#!/usr/bin/env bash
# A source distribution must hold every file of the repository; a wheel must install without the checkout, work,
# and leave nothing behind when it is removed.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv}"
rm -f dist/gradkern-*.whl
make wheel
bash scripts/audit_wheel.sh dist/gradkern-*.whl 1
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="$(cd "$VENV/bin" && pwd)/python"
"$python" setup.py --quiet sdist --formats=gztar --dist-dir "$scratch/sdist"
tar -xzf "$scratch"/sdist/gradkern-*.tar.gz -C "$scratch/sdist"
while read -r file; do
  [ -e "$scratch"/sdist/gradkern-*/"$file" ] || { echo "not in the source distribution: $file"; exit 1; }
done < <(git ls-files | grep -vx '.gitignore')
"$python" -m venv "$scratch/venv"
# torch is seen from the first environment, not installed again.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >"$scratch/venv/lib/$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}")')/site-packages/torch.pth"
cd "$scratch"
unset PYTHONPATH
venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$OLDPWD"/dist/gradkern-*.whl
venv/bin/python - <<'PY'
import sys
from pathlib import Path

import torch

import gradkern

assert Path(gradkern.__file__).is_relative_to(sys.prefix), gradkern.__file__
p = torch.nn.Parameter(torch.zeros(3))
p.grad = torch.tensor([3.0, 0.0, 4.0])
assert float(gradkern.clip_grad_norm_([p], 1.0)) == 5.0
assert abs(float(p.grad.norm()) - 1.0) < 1e-6
PY
venv/bin/gradkern info
venv/bin/python -m pip uninstall --quiet --yes gradkern
left="$(find venv -iname '*gradkern*')"
[ -z "$left" ] || { echo "pip uninstall left: $left"; exit 1; }
