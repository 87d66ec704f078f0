"""Finds the torch to build against, without importing it: in an isolated build it is on disk, but hidden."""

from __future__ import annotations

import importlib.util
import os
import re
import site
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MISSING = (
    "gradkern needs torch to be installed first: pip install torch, then install gradkern again.\n"
    "It is compiled against the torch it will run with, and this build sees none.\n"
    "uv and python -m build hide the environment's torch: name its site-packages in GRADKERN_TORCH, or\n"
    "install setuptools, wheel, cmake and ninja, and pass --no-build-isolation (--no-isolation)."
)


@dataclass(frozen=True)
class Torch:
    """A torch on disk."""

    folder: Path
    """The package's own folder, with include/ and lib/."""
    version: str

    @property
    def minor(self) -> str:
        """The minor version, such as "2.13", which a binding is compiled for."""
        return ".".join(self.version.split(".")[:2])


def torches() -> list[Torch]:
    """The torches to build bindings for: those that GRADKERN_TORCH names, else the environment's.

    GRADKERN_TORCH is a list of folders, separated as in PATH; each holds a `torch` folder (an unpacked wheel
    will do).

    Raises:
        SystemExit: if there is none; the message says what to do.
    """
    named = os.environ.get("GRADKERN_TORCH", "")
    found = [torch_in(Path(folder).absolute()) for folder in named.split(os.pathsep) if folder]
    if None in found:
        missing = named.split(os.pathsep)[found.index(None)]
        raise SystemExit(f"gradkern: GRADKERN_TORCH: there is no torch in {missing}")
    chosen = [torch for torch in found if torch is not None]
    if not chosen:
        chosen = [torch for torch in map(torch_in, _site_packages()) if torch is not None][:1]
    if not chosen:
        raise SystemExit(MISSING)
    return chosen


def torch_in(folder: Path) -> Torch | None:
    """The torch in a folder of packages, if there is one."""
    version = folder / "torch" / "version.py"
    if not version.exists():
        return None
    said = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", version.read_text(encoding="utf-8"), re.MULTILINE)
    return Torch(folder / "torch", said.group(1)) if said else None


def _site_packages() -> list[Path]:
    """Where an installed torch can be: where Python imports it from, then where pip installs to.

    pip builds in an environment of its own, but with the interpreter of the environment it installs into.
    """
    spec = importlib.util.find_spec("torch")
    importable = [Path(spec.origin).parent.parent] if spec is not None and spec.origin else []
    installed = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), site.getusersitepackages()]
    return [*importable, *map(Path, installed)]
