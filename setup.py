"""Thin: the build graph is CMakeLists.txt; this calls it once for each torch and collects the bindings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

from torches import Torch, torches  # noqa: E402


def tool(name: str) -> str:
    """cmake and ninja of the building environment, else those on PATH."""
    beside_python = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if not found:
        raise SystemExit(f"gradkern: {name} was not found; pip install {name}")
    return found


def build(torch: Torch, package: Path) -> None:
    """Compile the binding for one torch and put it into the package."""
    # One folder an interpreter and torch: switching back rebuilds nothing.
    folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.version}"
    print(f"gradkern: building for torch {torch.version} in {folder.relative_to(ROOT)}", flush=True)
    configure = [
        *(tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DGRADKERN_TORCH={torch.folder}",
        f"-DGRADKERN_TORCH_VERSION={torch.version}",
        f"-DGRADKERN_CUDA={os.environ.get('GRADKERN_CUDA', 'auto')}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    subprocess.run(configure, check=True)
    subprocess.run([tool("cmake"), "--build", str(folder)], check=True)
    subprocess.run([tool("cmake"), "--install", str(folder), "--prefix", str(package)], check=True)


class CMakeBuild(build_ext):
    """Bindings are called `_C.torch-2.13.<suffix>`; gradkern/kernels/extension.py chooses one at import."""

    def build_extension(self, ext: Extension) -> None:
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        package.mkdir(parents=True, exist_ok=True)
        for torch in torches():
            build(torch, package)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds."""
        built = Path(self.get_ext_fullpath("gradkern._C")) if not self.inplace else None
        folder = Path(self.build_lib) / "gradkern" if built is None else built.parent
        for binding in folder.glob("_C.torch-*"):
            shutil.copy2(binding, ROOT / "gradkern")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "gradkern").glob("_C.torch-*")]


setup(
    license="Apache-2.0",
    ext_modules=[Extension("gradkern._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
