"""Builds the C++ tests (no torch needed) and runs them: cpp_tests.py BUILD_DIR [--sanitize LIST]."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> str:
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"{name} was not found; pip install cmake ninja")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--sanitize", default="", help="for instance address,undefined")
    arguments = parser.parse_args()
    build = (ROOT / arguments.build).resolve()
    configure = [
        *(tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        *("-DGRADKERN_PYTHON=OFF", "-DGRADKERN_TESTS=ON", "-DGRADKERN_CUDA=0"),
        f"-DGRADKERN_SANITIZE={arguments.sanitize}",
    ]
    if subprocess.run(configure, stdout=subprocess.DEVNULL, check=False).returncode:
        return 1
    if subprocess.run([tool("cmake"), "--build", str(build)], check=False).returncode:
        return 1
    test = [tool("ctest"), "--test-dir", str(build), "--output-on-failure", f"-j{os.cpu_count() or 1}"]
    return subprocess.run(test, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
