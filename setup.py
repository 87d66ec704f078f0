"""Thin: the build graph is CMakeLists.txt; this calls it for the kernels and for each torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

from torches import Torch, torches  # noqa: E402

LIBRARY = "libgradkern_kernels.so"


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


def cmake(folder: Path, package: Path, *options: str) -> None:
    """Configure and build in a folder, and install what was built into the package."""
    configure = [
        *(tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DCMAKE_BUILD_TYPE=Release",
        *options,
    ]
    subprocess.run(configure, check=True)
    subprocess.run([tool("cmake"), "--build", str(folder)], check=True)
    subprocess.run([tool("cmake"), "--install", str(folder), "--prefix", str(package)], check=True)


def build_kernels(package: Path) -> None:
    """The library, which is the same for every version of Python and torch."""
    cuda = os.environ.get("GRADKERN_CUDA", "auto")
    folder = ROOT / "build" / f"kernels-cuda_{cuda}"
    say(f"kernels (GRADKERN_CUDA={cuda}) in {folder.relative_to(ROOT)}")
    cmake(folder, package, "-DGRADKERN_PYTHON=OFF", f"-DGRADKERN_CUDA={cuda}")


def build_binding(torch: Torch, package: Path) -> None:
    """gradkern._C for one version of torch."""
    # One folder an interpreter and torch: switching back rebuilds nothing.
    folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.version}"
    say(f"binding for torch {torch.version} in {folder.relative_to(ROOT)}")
    cmake(
        folder,
        package,
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DGRADKERN_TORCH={torch.folder}",
        f"-DGRADKERN_TORCH_VERSION={torch.version}",
        f"-DGRADKERN_LIBRARY={package / 'lib' / LIBRARY}",
    )


def say(message: str) -> None:
    print(f"gradkern: {message}", flush=True)


class CMakeBuild(build_ext):
    """`lib/libgradkern_kernels.so`, and a binding `_C.torch-2.13.<suffix>` for each torch.

    gradkern/kernels/extension.py chooses one of these at import.
    """

    def build_extension(self, ext: Extension) -> None:
        chosen = torches()
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        package.mkdir(parents=True, exist_ok=True)
        for left in package.glob("_C.torch-*"):  # an earlier build's, perhaps of other sources
            left.unlink()
        build_kernels(package)
        for torch in chosen:
            build_binding(torch, package)

    def copy_extensions_to_source(self) -> None:
        """Builds in place and editable ones."""
        built = Path(self.build_lib) / "gradkern"
        (ROOT / "gradkern/lib").mkdir(exist_ok=True)
        for path in self.built_files():
            shutil.copy2(path, ROOT / "gradkern" / path.relative_to(built))

    def built_files(self) -> list[Path]:
        package = Path(self.build_lib) / "gradkern"
        return [package / "lib" / LIBRARY, *package.glob("_C.torch-*")]

    def get_outputs(self) -> list[str]:
        return list(map(str, self.built_files()))


setup(
    license="Apache-2.0",
    ext_modules=[Extension("gradkern._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
