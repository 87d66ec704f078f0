"""Build the kernels and one binding per torch with CMake."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

from kernels import build, build_kernels, configure, install, say  # noqa: E402
from torches import Torch, torches  # noqa: E402

LIBRARY = "libgradkern_kernels.so"


def configure_binding(torch: Torch, package: Path) -> Path:
    """Prepare gradkern._C for one version of torch; returns the folder it is built in."""
    # One folder an interpreter and torch: switching back rebuilds nothing.
    folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.version}"
    say(f"binding for torch {torch.version} in {folder.relative_to(ROOT)}")
    configure(
        folder,
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DGRADKERN_TORCH={torch.folder}",
        f"-DGRADKERN_TORCH_VERSION={torch.version}",
        f"-DGRADKERN_LIBRARY={package / 'lib' / LIBRARY}",
    )
    return folder


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
        with ThreadPoolExecutor() as pool:  # each of the two has one file that takes longer than all others
            kernels = pool.submit(build_kernels)
            folders = [configure_binding(torch, package) for torch in chosen]
            build(folders[0], "binding")
            install(kernels.result(), package)
        for folder in folders:
            build(folder)
            install(folder, package)

    def copy_extensions_to_source(self) -> None:
        """Copy what was built into the checkout, for builds in place and editable installations."""
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
