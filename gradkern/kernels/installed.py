"""The compiled files of this installation, without loading them; needs no torch."""

from __future__ import annotations

import struct
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
LIBRARY = PACKAGE / "lib" / "libgradkern_kernels.so"
PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
REBUILD = "pip install --force-reinstall --no-deps PATH_TO_CHECKOUT (or there: make -B build)"


def bindings() -> dict[str, Path]:
    """The bindings of this installation for this Python, by minor version of torch, in ascending order."""
    suffix = EXTENSION_SUFFIXES[0]
    found = {
        p.name.removeprefix("_C.torch-").removesuffix(suffix): p for p in PACKAGE.glob(f"_C.torch-*{suffix}")
    }
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def minor(version: str) -> str:
    """The minor version of a torch, by which bindings are named: "2.13" of "2.13.0+cpu"."""
    return ".".join(version.split(".")[:2])


def why_none(version: str) -> str:
    """Why no binding is for a version of torch, which is not among those of `bindings()`."""
    found = ", ".join(bindings())
    if not found:
        return f"there is no compiled extension for {PYTHON} in {PACKAGE}"
    return f"the compiled extension is for torch {found}, and torch {version} is installed"


def remedy(version: str) -> str:
    """What to install where the binding for a version of torch is not there or does not load."""
    found = bindings()
    build = f"To build for the installed torch: {REBUILD}"
    if not found or minor(version) in found:
        return build
    newer = [other for other in found if _order(other) > _order(minor(version))]
    nearest = newer[0] if newer else list(found)[-1]
    return f'It has kernels for torch {nearest}: pip install "torch=={nearest}.*". {build}'


def is_cut_off(path: Path) -> bool:
    """Whether a shared library lacks its end, as after an interrupted copy.

    The loader does not notice; the process would end with SIGBUS.
    """
    with path.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, 2)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False  # the loader says what it is
    (sections,) = struct.unpack_from("<Q", header, 0x28)  # e_shoff; this table comes last
    each, count = struct.unpack_from("<HH", header, 0x3A)
    return bool(size < sections + each * count)


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
