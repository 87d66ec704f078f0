"""Which torch a build uses."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

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
    with pytest.raises(SystemExit, match=r"no torch was found\.\nInstall it first(.|\n)*pip install torch"):
        torches.torches()
