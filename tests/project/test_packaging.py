"""Which torch a build uses, and what the compiled files depend on."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradkern
from gradkern.kernels import extension

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def torches(monkeypatch):
    spec = importlib.util.spec_from_file_location("torches", ROOT / "build_tools" / "torches.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "torches", module)
    spec.loader.exec_module(module)
    monkeypatch.delenv("GRADKERN_TORCH", raising=False)
    return module


def packages(folder, version):
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"__all__ = []\n__version__ = '{version}'\ndebug = False\n")
    return folder


def test_the_environments_own_by_default(torches):
    (found,) = torches.torches()
    assert (found.folder, found.version) == (Path(torch.__file__).parent, torch.__version__)
    assert found.minor == ".".join(torch.__version__.split(".")[:2])


def test_an_isolated_build_finds_it_where_pip_installs_to(torches, tmp_path, monkeypatch):
    monkeypatch.setattr(torches.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        torches.sysconfig, "get_path", lambda name: str(packages(tmp_path / name, "2.13.1+cu130"))
    )
    assert [(t.version, t.minor, t.folder.parent.name) for t in torches.torches()] == [
        ("2.13.1+cu130", "2.13", "platlib")
    ]


def test_several_that_are_named(torches, tmp_path, monkeypatch):
    folders = [packages(tmp_path / "a", "2.12.0"), packages(tmp_path / "b", "2.14.1+cpu")]
    monkeypatch.setenv("GRADKERN_TORCH", os.pathsep.join(map(str, folders)))
    assert [t.minor for t in torches.torches()] == ["2.12", "2.14"]
    monkeypatch.setenv("GRADKERN_TORCH", str(tmp_path / "c"))
    with pytest.raises(SystemExit, match=f"GRADKERN_TORCH: there is no torch in {tmp_path / 'c'}"):
        torches.torches()


def test_without_one_the_message_says_what_to_do(torches, tmp_path, monkeypatch):
    monkeypatch.setattr(torches, "_site_packages", lambda: [tmp_path])
    with pytest.raises(SystemExit, match=r"^gradkern needs torch to be installed first: pip install torch"):
        torches.torches()


def dynamic_section(path, *, tag):
    shown = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return [line.split("[")[1].rstrip("]") for line in shown.splitlines() if f"({tag})" in line]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
class TestLinkage:
    """The kernels lie in a library of their own, which serves every version of Python and torch."""

    PACKAGE = Path(gradkern.__file__).parent

    def test_the_library_needs_no_torch_no_python_and_no_openmp(self):
        needed = dynamic_section(self.PACKAGE / "lib/libgradkern_kernels.so", tag="NEEDED")
        own = re.compile(r"(lib(stdc\+\+|gcc_s|[cm]|dl|rt|pthread)|ld-linux.*)\.so")
        assert needed and [name for name in needed if not own.match(name)] == []

    def test_it_exports_the_c_interface_alone(self):
        library = self.PACKAGE / "lib/libgradkern_kernels.so"
        shown = subprocess.run(
            ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
        )
        names = {line.split()[-1] for line in shown.stdout.splitlines()}
        declared = set(re.findall(r"(gradkern_\w+)\(", (ROOT / "csrc/library/kernels.h").read_text()))
        assert names == declared

    def test_a_binding_finds_it_beside_itself(self):
        binding = extension.EXTENSION.__file__
        assert "libgradkern_kernels.so" in dynamic_section(binding, tag="NEEDED")
        paths = dynamic_section(binding, tag="RUNPATH") or dynamic_section(binding, tag="RPATH")
        assert paths == ["$ORIGIN/lib"]
