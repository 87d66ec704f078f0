"""Which torch a build uses, and what the compiled files depend on."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
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


def test_a_relative_folder_is_that_of_the_caller(torches, tmp_path, monkeypatch):
    """CMake would resolve it from its own folder."""
    packages(tmp_path / "a", "2.12.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADKERN_TORCH", "a")
    assert torches.torches()[0].folder == tmp_path / "a" / "torch"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_cibuildwheel_fetches_the_torches_it_builds_for():
    import tomllib

    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    for settings in (told, *told["overrides"]):
        _, script, folder, *versions = settings["before-build"].split()
        assert (ROOT / script).exists()
        folders = settings["environment"]["GRADKERN_TORCH"].split(":")
        assert folders == [f"{folder}/{version}" for version in versions]
        assert len({version.rpartition(".")[0] for version in versions}) == len(versions)


@pytest.fixture
def backend(torches):
    spec = importlib.util.spec_from_file_location("backend", ROOT / "build_tools" / "backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["wheel", "editable"])
def test_every_way_to_build_asks_for_torch_first(torches, backend, tmp_path, monkeypatch, target):
    """pip and uv ask for the requirements, then for the metadata; `--no-build-isolation` begins later."""
    monkeypatch.setattr(torches, "_site_packages", lambda: [tmp_path / "none"])
    monkeypatch.chdir(tmp_path)  # what a hook wrote would lie here
    for hook in ("get_requires_for_build_{}", "prepare_metadata_for_build_{}", "build_{}"):
        arguments = [] if hook.startswith("get") else [str(tmp_path)]
        with pytest.raises(SystemExit, match=r"^gradkern needs torch to be installed first"):
            getattr(backend, hook.format(target))(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_source_distribution_needs_no_torch(torches, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(torches, "_site_packages", lambda: [tmp_path / "none"])
    monkeypatch.chdir(ROOT)
    name = backend.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as archive:
        files = {path.partition("/")[2] for path in archive.getnames()}
    read = {"setup.py", "build_tools/kernels.py", "build_tools/torches.py", "cmake/library.map"}
    assert read | {"csrc/library/kernels.h"} <= files
    for_make = {"Makefile", "constraints.txt", "requirements/integration.txt", "mkdocs.yml", ".ci/run"}
    assert for_make | {"CHANGELOG.md", "CONTRIBUTING.md", "docs/index.md", "docs/images/finding.png"} <= files


def test_the_kernels_are_built_without_setuptools_and_torch(run_python):
    """As `make` does it while pip installs torch."""
    code = """
import subprocess, sys
left_out = ("-DCMAKE", "-G", "Ninja", "nice", "cmake")
subprocess.run = lambda command, **_: print([w for w in command if not w.startswith(left_out)])
import kernels
kernels.tool = lambda name: name
kernels.build_kernels()
print([name for name in ("setuptools", "torch") if name in sys.modules])
"""
    done = run_python(code, path=ROOT / "build_tools", GRADKERN_CUDA="0")
    folder = str(ROOT / "build" / "kernels-cuda_0")
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()[1:]] == [
        ["-S", str(ROOT), "-B", folder, "-DGRADKERN_PYTHON=OFF", "-DGRADKERN_CUDA=0"],
        ["--build", folder, "--target", "all"],
        [],
    ], done.stderr


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

    def test_a_binding_needs_nothing_of_cuda(self):
        """A CPU build of torch has no libtorch_cuda, and a machine without a GPU no driver."""
        shown = subprocess.run(
            ["nm", "-D", "-C", "--undefined-only", extension.EXTENSION.__file__],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        names = [line.split(maxsplit=1)[1] for line in shown.splitlines()]
        assert any(name.startswith("at::") for name in names)
        assert [name for name in names if re.match(r"(at|c10)::cuda|cu[A-Z]|cuda[A-Z]", name)] == []
