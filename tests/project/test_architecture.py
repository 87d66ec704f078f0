"""The direction of dependencies, and what importing costs."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch

import gradkern
from gradkern._util import moved

ROOT = Path(__file__).resolve().parents[2]
#: What each folder of csrc includes of the others. Only the bindings know torch and Python.
CSRC = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "library": {"core", "cpu", "cuda", "library"},
    "bindings": {"core", "library", "bindings"},
}
SOURCES = sorted(
    path
    for folder in CSRC
    for path in (ROOT / "csrc" / folder).rglob("*")
    if path.suffix in {".h", ".cuh", ".cpp", ".cu", ".hpp"}
)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def includes(path):
    return INCLUDE.findall(path.read_text(encoding="utf-8"))


def test_there_is_something_to_check():
    assert set(CSRC) <= {p.parent.name for p in SOURCES}
    assert len(SOURCES) >= 10


def folder_of(path):
    return path.relative_to(ROOT / "csrc").parts[0]


KERNELS = [path for path in SOURCES if folder_of(path) != "bindings"]


def test_kernels_know_no_torch_and_no_python():
    foreign = re.compile(r"^(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")
    assert [(path.name, name) for path in KERNELS for name in includes(path) if foreign.match(name)] == []
    named = re.compile(r"\b(at|c10|torch)::")
    assert [path.name for path in KERNELS if named.search(path.read_text(encoding="utf-8"))] == []


def test_arrows_run_one_way():
    for path in SOURCES:
        ours = {name.split("/")[0] for name in includes(path)} & set(CSRC)
        assert ours <= CSRC[folder_of(path)], path


def test_the_c_interface_is_plain_c():
    """Nothing but C's own headers: it is what a binding for another framework would include."""
    assert includes(ROOT / "csrc/library/kernels.h") == ["stddef.h", "stdint.h"]


def test_bindings_use_narrow_headers():
    for path in (ROOT / "csrc" / "bindings").glob("*"):
        assert not {"torch/extension.h", "torch/all.h", "torch/torch.h", "ATen/ATen.h"} & set(
            includes(path)
        ), path.name


#: Python's layers, the lowest first: folders of the package and the few modules at its top. A module imports
#: from its own folder and from layers below: at its top, in a function and for types alike.
LAYERS = (
    {"_C", "version", "_util"},
    {"kernels", "history"},
    {"params", "diagnosis"},
    {"distributed"},
    {"clipping"},
    {"sinks"},
    {"monitor", "compat"},
    {"report", "watch", "demo", "bench", "integrations"},
    {"cli", "policies"},  # policies: the public name of clipping/policies
    {"__init__", "__main__"},  # what users import; nothing in the package imports it
)
#: The rooms of monitor/, the lowest first. Files beside them are not ordered.
ROOMS = ("events", "models", "captures", "checks", "periodic", "writing")
#: Packages that look at a run: they import neither torch nor a package that does.
TORCH_FREE = {"_util", "history", "diagnosis", "sinks", "watch", "report", "cli"}
PACKAGE = ROOT / "gradkern"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
KNOWN = {*MODULES, "_C"}


def module_named(name):
    """The entry of MODULES to which the full name of a module, a package or an attribute belongs."""
    parts = name.split(".")[1:]
    for inside in (parts, [*parts, "__init__"], parts[:-1], [*parts[:-1], "__init__"]):
        if ".".join(inside) in KNOWN:
            return ".".join(inside)
    raise AssertionError(f"{name}: expected something of gradkern's")


@functools.cache
def imported_by(module):
    """The modules of gradkern that a module's import statements name, also in functions."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: expected absolute imports"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {module_named(name) for name in names if name.split(".")[0] == "gradkern"}


def runs_down(importer, imported):
    height = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    above, below = importer.split(".")[0], imported.split(".")[0]
    return above == below or height[above] > height[below]


def test_rooms_of_the_monitor_import_one_way():
    for importer in MODULES:
        for imported in imported_by(importer):
            above, below = importer.split("."), imported.split(".")
            if above[0] == below[0] == "monitor" and above[1] in ROOMS and below[1] in ROOMS:
                assert ROOMS.index(above[1]) >= ROOMS.index(below[1]), f"{importer} imports {imported}"


def test_every_module_has_its_layer():
    stated = [name for layer in LAYERS for name in layer]
    assert sorted(stated) == sorted({"_C", *(module.split(".")[0] for module in MODULES)})


def test_python_arrows_run_one_way():
    arrows = {(module, name) for module in MODULES for name in imported_by(module)}
    assert len(arrows) > 200
    assert {arrow for arrow in arrows if not runs_down(*arrow)} == set()


def test_modules_import_in_no_circle():
    """Not even in functions or for types. A package's __init__ may import the modules in it."""
    graph = {module: imported_by(module) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError shows the circle


OPTIONAL = (
    "matplotlib",
    "rich",
    "pandas",
    "pyarrow",
    "tensorboard",
    "wandb",
    "mlflow",
    "lightning",
    "transformers",
    "accelerate",
)


def test_importing_is_cheap_and_pulls_no_optional_package(run_python):
    """Apart from those that torch imports. The compiler alone would take as long as torch."""
    code = f"""
import sys, torch
before = set(sys.modules)
import gradkern
new = set(sys.modules) - before
print([m for m in new if m.split(".")[0] not in ("gradkern", *sys.stdlib_module_names)])
print([m for m in new if m in ("sqlite3", "gradkern.monitor", "gradkern.distributed", "gradkern.demo")])
gradkern.GradMonitor, gradkern.History
import gradkern.sinks
print([m for m in {OPTIONAL} if m in sys.modules and m not in before])
"""
    done = run_python(code)
    assert done.stdout.split("\n") == ["[]", "[]", "[]", ""], done.stderr


def test_what_looks_at_a_run_needs_no_torch(run_python):
    """Also where torch, or the extension, is broken."""
    rooms = {module.removesuffix(".__init__") for module in MODULES if module.split(".")[0] in TORCH_FREE}
    code = f"""
import importlib, sys
sys.modules["torch"] = sys.modules["gradkern._C"] = None  # importing them fails
import gradkern
for module in {sorted(rooms)}:
    importlib.import_module("gradkern." + module)
print(gradkern.History.__name__, "gradkern.kernels.extension" in sys.modules)
"""
    done = run_python(code)
    assert done.stdout.strip() == "History False", done.stderr


def test_importing_gradkern_alone_imports_no_torch(run_python):
    done = run_python("import gradkern, sys; print('torch' in sys.modules, gradkern.__version__)")
    assert done.stdout.split() == ["False", gradkern.__version__], done.stderr


@pytest.mark.parametrize("old", sorted(moved.MOVED))
def test_paths_of_earlier_versions_work_with_a_warning(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {moved.MOVED[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(moved.MOVED[old])
    names = [name for name in vars(new) if not name.startswith("_")]
    assert names and all(getattr(module, name) is getattr(new, name) for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_of_divided_modules_are_found():
    from gradkern.monitor.columns import DETAILS, LayerColumns
    from gradkern.monitor.recorder import RETRY
    from gradkern.names import layer_of

    assert layer_of("0.weight") == "0" and LayerColumns is gradkern.history.layers.LayerColumns
    assert DETAILS is gradkern.history.layout.DETAILS and RETRY == gradkern.monitor.writing.committer.RETRY
    with pytest.raises(ImportError):
        from gradkern.names import nothing  # noqa: F401


#: Names of 0.1 without a successor, as the changelog says.
DROPPED = {
    "gradkern.bench.layouts": {"DTYPES", "Layout", "LayoutError", "case_layout", "model_layout"},
    "gradkern.measure": {"as_stats", "measure"},  # the function gradkern.measure
    "gradkern.monitor.arguments": {"as_optimizer", "as_rates", "check_said"},
    "gradkern.monitor.capture": {"PartsCapture"},
    "gradkern.monitor.export": {"pieces"},
    "gradkern.monitor.hooks": {"take_off"},
    "gradkern.monitor.occasional": {"Occasional"},
    "gradkern.monitor.step_order": {"StepOrder"},
    "gradkern.monitor.summaries": {"HEAD_FIELDS", "Rows"},
    "gradkern.monitor.summary_reader": {"decode_bucket"},
    "gradkern.sinks.heatmap": {"encode_png"},
}
#: Every public name that a module of 0.1 defined, and those of `__all__`: "module: name name …".
NAMES_OF_0_1 = {
    module: set(names.split())
    for module, names in (
        line.split(": ")
        for line in (ROOT / "tests/project/names_of_0_1.txt").read_text(encoding="utf-8").splitlines()
    )
}


def names_missing_in(module):
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return NAMES_OF_0_1[module]
    return {name for name in NAMES_OF_0_1[module] if not hasattr(found, name)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_name_of_0_1_is_found_at_its_old_path():
    assert sum(map(len, NAMES_OF_0_1.values())) > 335
    missing = {module: names_missing_in(module) for module in NAMES_OF_0_1}
    assert {module: names for module, names in missing.items() if names} == DROPPED


def test_dropped_names_are_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [m for m in DROPPED if f"`{m.removeprefix('gradkern.')}`" not in text] == []


@pytest.mark.parametrize("old", sorted(moved.RENAMED))
def test_renamed_names_work_with_a_warning(old):
    home, _, name = old.rpartition(".")
    new_home, _, new = moved.RENAMED[old].rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {moved.RENAMED[old]}") as warned:
        found = getattr(importlib.import_module(home), name)
    assert found is getattr(importlib.import_module(new_home), new)
    assert warned[-1].filename == __file__


def test_moved_modules_are_attributes_of_their_packages(run_with_torch):
    code = """
import warnings
warnings.simplefilter("ignore")
import gradkern.monitor, gradkern.report
print(gradkern.stats.GradStats is gradkern.GradStats, gradkern.monitor.store.HistoryError.__name__)
for name in ("clipper", "functional", "names", "patch", "plan", "commands"):
    getattr(gradkern, name)
print(hasattr(gradkern, "nothing"), hasattr(gradkern.monitor, "nothing"))
warnings.simplefilter("error")
try:
    gradkern.report.sparse
except DeprecationWarning as warning:
    print(warning)
"""
    done = run_with_torch(code)
    assert done.stdout.splitlines() == [
        "True HistoryError",
        "False False",
        "gradkern.report.sparse has moved to gradkern.report.periodic",
    ], done.stderr


def test_pickles_of_earlier_versions_load():
    stats = gradkern.measure([torch.nn.Parameter(torch.ones(2))])
    old = pickle.dumps(stats, 0).replace(b"gradkern.params.stats", b"gradkern.stats")
    sys.modules.pop("gradkern.stats", None)
    with pytest.warns(DeprecationWarning, match="has moved"):
        assert pickle.loads(old).names == stats.names


def test_importing_changes_nothing_in_torch(run_with_torch):
    code = """
import torch, torch.nn.utils
def look():
    modes = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    return torch.nn.utils.clip_grad_norm_, modes
before = look()
import gradkern
print(before == look())
"""
    assert run_with_torch(code).stdout.strip() == "True"


def test_public_names():
    assert sorted(gradkern.__all__) == sorted(set(gradkern.__all__))
    for name in gradkern.__all__:
        assert hasattr(gradkern, name)
    assert (Path(gradkern.__file__).parent / "py.typed").exists()
