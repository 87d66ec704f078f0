"""Builds what CMakeLists.txt describes: the library of kernels, which needs neither torch nor setuptools.

As a program it compiles the library alone: ``make`` does that while pip installs torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> str:
    """cmake and ninja of the building environment, else those on PATH."""
    # The package first: an isolated build hides what lies beside Python, and a system's cmake may be
    # too old for this nvcc (3.25 does not know C++20 in CUDA 13).
    package = find_spec(name)
    bundled = Path(package.origin or "").parent / "data/bin" / name if package else None
    if bundled and bundled.exists():
        return str(bundled)
    beside_python = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if not found:
        raise SystemExit(f"gradkern: {name} was not found; pip install {name}")
    return found


def configure(folder: Path, *options: str) -> None:
    """Write a folder's build files."""
    command = [
        *(tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DCMAKE_BUILD_TYPE=Release",
        *options,
    ]
    subprocess.run(command, check=True)


def build(folder: Path, target: str = "all", *, gives_way: bool = False) -> None:
    """Build a target of a folder; `gives_way` to another build that runs meanwhile."""
    polite = ["nice"] if gives_way and shutil.which("nice") else []
    subprocess.run([*polite, tool("cmake"), "--build", str(folder), "--target", target], check=True)


def install(folder: Path, package: Path) -> None:
    """Copy what was built in a folder into the package."""
    subprocess.run([tool("cmake"), "--install", str(folder), "--prefix", str(package)], check=True)


def build_kernels() -> Path:
    """The library, which is the same for every version of Python and torch; returns its folder."""
    cuda = os.environ.get("GRADKERN_CUDA", "auto")
    folder = ROOT / "build" / f"kernels-cuda_{cuda}"
    say(f"kernels (GRADKERN_CUDA={cuda}) in {folder.relative_to(ROOT)}")
    configure(folder, "-DGRADKERN_PYTHON=OFF", f"-DGRADKERN_CUDA={cuda}")
    # The binding is one long compilation, which would otherwise share the cores with many and end last.
    build(folder, gives_way=True)
    return folder


def say(message: str) -> None:
    print(f"gradkern: {message}", flush=True)


if __name__ == "__main__":
    build_kernels()
