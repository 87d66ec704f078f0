"""Thin: the build graph is CMakeLists.txt; this calls it and puts the extension in place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """cmake and ninja of the building environment, else those on PATH."""
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if not found:
        raise SystemExit(f"gradkern: {name} was not found; pip install {name}")
    return found


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            import torch
        except ImportError as error:
            raise SystemExit(
                "gradkern builds against the torch it will run with: install torch first, then\n"
                "  pip install --no-build-isolation ."
            ) from error
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        package.mkdir(parents=True, exist_ok=True)
        # One folder an interpreter and torch: switching back rebuilds nothing.
        tag = f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        build = ROOT / "build" / tag
        subprocess.run(
            [
                tool("cmake"),
                *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
                f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DGRADKERN_CUDA={os.environ.get('GRADKERN_CUDA', 'auto')}",
                "-DCMAKE_BUILD_TYPE=Release",
            ],
            check=True,
        )
        subprocess.run([tool("cmake"), "--build", str(build)], check=True)
        subprocess.run([tool("cmake"), "--install", str(build), "--prefix", str(package)], check=True)
        record_torch(package)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: setuptools copies the .so only."""
        super().copy_extensions_to_source()
        record_torch(ROOT / "gradkern")


def record_torch(package: Path) -> None:
    """What gradkern/kernels/extension.py compares with the installed torch before it loads the extension."""
    import torch

    (package / "_built_for_torch.txt").write_text(torch.__version__ + "\n", encoding="utf-8")


setup(
    license="Apache-2.0",
    ext_modules=[Extension("gradkern._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
