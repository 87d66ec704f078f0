"""The choice of the binding for the installed torch, the notice if there is none, and `gradkern info`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradkern
from gradkern.kernels import installed

ROOT = Path(__file__).resolve().parents[2]
#: The minor version of the installed torch.
MINE = installed.minor(torch.__version__)


@pytest.fixture
def package_copy(tmp_path):
    """A folder with a copy of the package that has the binding for this torch alone."""
    package = Path(gradkern.__file__).parent
    shutil.copytree(
        package, tmp_path / "gradkern", ignore=shutil.ignore_patterns("__pycache__", "_C.torch-*")
    )
    binding = installed.bindings()[MINE]
    shutil.copy2(binding, tmp_path / "gradkern" / binding.name)
    return tmp_path


def only_binding(package):
    (path,) = (package / "gradkern").glob("_C.torch-*")
    return path


def make_it_for(package, *versions):
    """Leaves only bindings for other versions of torch: copies of this one under other names."""
    path = only_binding(package)
    for version in versions:
        shutil.copy2(path, path.with_name(path.name.replace(f"torch-{MINE}.", f"torch-{version}.")))
    path.unlink()


#: An editable installation would find its own extension where the copy has none.
ONLY_THIS_COPY = """
import sys
def is_editable(finder):
    return "editable" in f"{finder!r} {getattr(finder, '__module__', '')}".lower()


sys.meta_path = [f for f in sys.meta_path if not is_editable(f)]
"""


CLIP = """
import torch, gradkern
model = torch.nn.Linear(2, 1, bias=False)
model.weight.grad = torch.tensor([[3.0, 4.0]])
clipper = gradkern.GradClipper(model, 1.0)
print(clipper.clip_().total_norm.item(), clipper.clip_().total_norm.item(), gradkern.build_info())
"""

WITHOUT_TORCH = 'sys.modules["torch"] = None  # importing it fails\n'


def command(*arguments):
    return f"from gradkern.cli.main import main\nsys.exit(main({list(arguments)}))"


def remove_library(path):
    shutil.rmtree(path.parent / "lib")


def other_interface(path):
    """A library that has every function, but another version of the interface."""
    names = set(re.findall(r"(gradkern_\w+)\(", (ROOT / "csrc/library/kernels.h").read_text()))
    source = path.parent / "other.c"
    source.write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in sorted(names)))
    library = path.parent / "lib/libgradkern_kernels.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


def cut_off(path):
    library = path.parent / "lib/libgradkern_kernels.so"
    library.write_bytes(library.read_bytes()[:5000])


DAMAGES = [
    pytest.param(lambda path: path.unlink(), "there is no compiled extension for Python 3", id="none"),
    pytest.param(lambda path: path.write_bytes(b"not a library"), "does not load: ", id="broken"),
    pytest.param(cut_off, "libgradkern_kernels.so is cut off after 5000 bytes", id="cut off"),
    pytest.param(remove_library, "does not load: libgradkern_kernels.so: ", id="no library"),
    pytest.param(
        other_interface,
        "does not load: expected version ",
        id="another interface",
        marks=pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
    ),
]


@pytest.mark.integration
class TestWhereNoneFits:
    """Calls work whatever was compiled; where no kernel can be used, one notice says why."""

    @pytest.mark.parametrize(
        ("there", "nearest"),
        [(["2.8", "2.9"], "2.9"), (["2.9", "9.1", "9.10"], "9.1"), (["9.10", "9.9"], "9.9")],
        ids=["torch is newer", "between", "torch is older"],
    )
    def test_one_notice_names_the_version_to_get(self, run_with_torch, package_copy, there, nearest):
        make_it_for(package_copy, *there)
        done = run_with_torch(ONLY_THIS_COPY + CLIP, path=package_copy)
        assert done.stdout.startswith("5.0 0.99999"), done.stderr
        assert done.stderr.count("GradkernWarning") == 1
        ascending = ", ".join(sorted(there, key=lambda v: int(v.replace(".", ""))))
        assert (
            f"kernels are not used: the compiled extension is for torch {ascending}, and torch "
            f"{torch.__version__} is installed. Calls go to torch's own operations" in done.stderr
        )
        assert f'It has kernels for torch {nearest}: pip install "torch=={nearest}.*"' in done.stderr
        assert "To build for the installed torch: pip install" in done.stderr

    @pytest.mark.parametrize(("damage", "reason"), DAMAGES)
    def test_no_extension_or_a_broken_one(self, run_with_torch, package_copy, damage, reason):
        damage(only_binding(package_copy))
        done = run_with_torch(ONLY_THIS_COPY + CLIP, path=package_copy)
        assert done.stdout.startswith("5.0 0.99999"), done.stderr
        assert done.stderr.count("GradkernWarning") == 1 and reason in done.stderr
        assert "To build for the installed torch" in done.stderr and "torch==" not in done.stderr

    def test_disabled_nothing_is_said(self, run_with_torch, package_copy):
        only_binding(package_copy).unlink()
        done = run_with_torch(ONLY_THIS_COPY + CLIP, path=package_copy, GRADKERN_DISABLE="1")
        assert done.stdout.startswith("5.0 0.99999") and "Warning" not in done.stderr, done.stderr

    @pytest.mark.parametrize("without", ["", WITHOUT_TORCH], ids=["another torch", "no torch"])
    @pytest.mark.parametrize("looking", [["watch", "--once"], ["report"], ["diagnose"]], ids=lambda c: c[0])
    def test_runs_can_be_looked_at(self, run_python, package_copy, recorded, looking, without):
        make_it_for(package_copy, "2.9")
        code = ONLY_THIS_COPY + without + command(looking[0], str(recorded()), *looking[1:])
        done = run_python(code, path=package_copy)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout

    def test_of_several_the_one_for_this_torch_is_chosen(self, run_with_torch, package_copy):
        path = only_binding(package_copy)
        for other in ("2.9", "2.100"):
            path.with_name(path.name.replace(f"torch-{MINE}.", f"torch-{other}.")).write_bytes(b"")
        code = """
from gradkern.kernels import extension, installed
print(list(installed.bindings()), extension.EXTENSION.__file__)
"""
        done = run_with_torch(ONLY_THIS_COPY + code, path=package_copy)
        assert done.stdout.strip() == f"['2.9', '{MINE}', '2.100'] {path}", done.stderr


@pytest.mark.integration
class TestInfo:
    """The report says what was loaded and why, whatever is missing."""

    def report(self, run_python, package, before="", **environment):
        done = run_python(ONLY_THIS_COPY + before + command("info"), path=package, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        lines = {line[:28].strip(): line[29:] for line in done.stdout.splitlines()}
        assert lines["gradkern"] == f"{gradkern.__version__} ({package / 'gradkern'})"
        assert lines["Python"].endswith(f"({sys.executable})")
        return lines

    def test_with_kernels(self, run_with_torch, package_copy):
        lines = self.report(run_with_torch, package_copy)
        assert lines["bindings for torch"] == MINE
        assert lines["kernels"] == "used"
        assert lines["extension"] == f"{only_binding(package_copy)}, for torch {MINE}"
        assert lines["library"].startswith(str(package_copy / "gradkern/lib/libgradkern_kernels.so"))
        assert lines["torch"].startswith(torch.__version__)
        assert {"cpu instruction set in use", "cuda architectures", "compiler"} <= lines.keys()
        assert {"driver", "CUDA of torch", "NumPy", "platform"} <= lines.keys()

    def test_disabled(self, run_with_torch, package_copy):
        lines = self.report(run_with_torch, package_copy, GRADKERN_DISABLE="1")
        assert lines["kernels"] == "not used: GRADKERN_DISABLE is set"
        assert lines["settings"].split()[0] == "GRADKERN_DISABLE=1"

    def test_disabled_and_none_that_fits(self, run_with_torch, package_copy):
        make_it_for(package_copy, "2.9")
        lines = self.report(run_with_torch, package_copy, GRADKERN_DISABLE="1")
        assert lines["kernels"] == "not used: GRADKERN_DISABLE is set"
        assert lines["extension"].startswith("not used: the compiled extension is for torch 2.9, and torch")

    @pytest.mark.parametrize(("damage", "reason"), DAMAGES)
    def test_damaged(self, run_python, package_copy, damage, reason):
        damage(only_binding(package_copy))
        lines = self.report(run_python, package_copy)
        assert lines["kernels"].startswith("not used: ") and reason in lines["kernels"]
        assert lines["remedy"].startswith("To build for the installed torch: pip install")

    def test_another_torch(self, run_python, package_copy):
        make_it_for(package_copy, "2.8", "2.9")
        lines = self.report(run_python, package_copy)
        assert lines["bindings for torch"] == "2.8, 2.9"
        assert lines["kernels"].startswith(
            "not used: the compiled extension is for torch 2.8, 2.9, and torch"
        )
        assert 'pip install "torch==2.9.*"' in lines["remedy"]

    def test_without_torch(self, run_python, package_copy):
        lines = self.report(run_python, package_copy, WITHOUT_TORCH)
        assert "cannot be imported: " in lines["torch"]
        assert lines["kernels"].startswith("not used: they need torch")
        assert lines["bindings for torch"] == MINE

    def test_a_missing_library_is_named(self, run_python, package_copy):
        remove_library(only_binding(package_copy))
        assert self.report(run_python, package_copy)["library"].startswith("missing: ")

    def test_a_gpu_and_why_its_kernels_do_not_run(self, run_with_torch, package_copy):
        gpu = """
import torch
from gradkern.kernels import extension
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda.get_device_capability = lambda i: (9, 0)
torch.cuda.get_device_name = lambda i: "NVIDIA H200"
class Extension:
    __file__ = "_C.so"
    build_info = staticmethod(dict)
    why_unusable = staticmethod(lambda i: "the driver is old" if i else "")
extension.EXTENSION = Extension
"""
        lines = self.report(run_with_torch, package_copy, gpu)
        assert lines["GPU 0"] == "NVIDIA H200, sm_90; kernels run"
        assert lines["GPU 1"] == "NVIDIA H200, sm_90; kernels do not run: the driver is old"

    @pytest.mark.parametrize(
        ("does", "said"),
        [
            ("echo 580.95\necho 580.95", "580.95"),
            ("echo no devices >&2; exit 9", "no devices"),
            ("", "nvidia-smi"),
        ],
    )
    def test_the_driver(self, run_with_torch, package_copy, tmp_path, does, said):
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\n{does}\n")
        tool.chmod(0o755)
        path = os.pathsep.join([str(tool.parent), os.environ["PATH"]])
        lines = self.report(run_with_torch, package_copy, PATH=path)
        assert lines["driver"].startswith(said)


def test_build_info():
    info = gradkern.build_info()
    assert info["version"] == gradkern.__version__
    assert info["torch"] == torch.__version__
    assert info["cpu_instruction_set_in_use"] in info["cpu_instruction_sets"].split()
    assert "baseline" in info["cpu_instruction_sets"].split()


def test_the_copy_itself_works(run_python, package_copy):
    done = run_python("import gradkern; print(gradkern.__file__)", path=package_copy)
    assert done.stdout.strip() == str(package_copy / "gradkern" / "__init__.py"), done.stderr
