"""What is computed from the benchmarks' results: bars and tables, from a made-up run."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(case="one tensor", tensors=1, size=1 << 30, clipping=False, **gpu):
    read = size / 4e12
    seconds = {
        "gradkern": 1.05 * read + (2 * read if clipping else 0),
        "gradkern_norm": 1.05 * read,
        "gradkern_statistics": 1.06 * read,
        "torch_foreach": 4 * read,
        "read": read,
        "copy": 2 * read,
    }
    return {
        "case": case,
        "tensors": tensors,
        "dtypes": ["float32"],
        "clipping": clipping,
        "bytes": size,
        "gpu_seconds": {**seconds, **gpu},
        "host_seconds": {"gradkern": 40e-6, "torch_foreach": 3e-3},
        "kernels": {"gradkern": 2, "torch_foreach": 5},
    }


@pytest.fixture
def cuda_bars():
    return load(ROOT / "benchmarks" / "cuda_bars.py")


def missed(cuda_bars, *rows):
    return [bar.name for bar in cuda_bars.bars(rows) if not bar.met]


def test_bars_that_are_met(cuda_bars):
    assert missed(cuda_bars, row(), row(clipping=True), row(tensors=2000)) == []
    names = {bar.name for bar in cuda_bars.bars([row(tensors=2000), row(clipping=True)])}
    assert names == {
        "norm pass",
        "clip that clips",
        "clip that clips nothing",
        "all statistics",
        "no slower than torch_foreach",
        "host time of 2,000 tensors",
    }


def test_bars_that_are_missed(cuda_bars):
    read = (1 << 30) / 4e12
    assert missed(cuda_bars, row(gradkern_norm=1.2 * read)) == ["norm pass"]
    assert missed(cuda_bars, row(gradkern=1.05 * read + 9e-6)) == ["clip that clips nothing"]
    assert missed(cuda_bars, row(clipping=True, gradkern=3.6 * read)) == ["clip that clips"]
    assert missed(cuda_bars, row(gradkern_statistics=1.2 * read)) == ["all statistics"]
    assert missed(cuda_bars, row(torch_foreach=1.01 * read)) == ["no slower than torch_foreach"]
    assert missed(cuda_bars, row(**{"peer:apex": 1.01 * read})) == ["no slower than peer:apex"]
    slow = row(tensors=2000)
    slow["host_seconds"]["gradkern"] = 61e-6
    assert missed(cuda_bars, slow) == ["host time of 2,000 tensors"]


def test_a_small_tensor_has_more_room(cuda_bars):
    size, rate = 1 << 20, 4e12
    floor = 5e-6 + size / rate
    small = {"size": size, "gradkern": 1.4 * floor, "torch_foreach": 1.0, "gradkern_statistics": 1.4 * floor}
    assert missed(cuda_bars, row(), row(**small, gradkern_norm=1.4 * floor)) == []
    assert missed(cuda_bars, row(), row(**small, gradkern_norm=1.6 * floor)) == ["norm pass"]


def test_cuda_table_and_plot(tmp_path):
    tables = load(ROOT / "scripts" / "readme_tables.py")
    machine = {"gpu": "a GPU", "driver": "1.2", "torch": "2.13.0", "commit": "abc"}
    record = {"machine": machine, "rows": [row(), row(size=1 << 24), row(clipping=True)]}
    table = tables.cuda_table(record)
    assert "a GPU, driver 1.2, torch 2.13.0, commit abc." in table
    assert "| one tensor | float32 | no | 282 µs (40 µs) | 1.07 ms (3 ms) | 1.05 | 2 |" in table
    tables.cuda_plot(record, tmp_path / "cuda.png")
    assert (tmp_path / "cuda.png").read_bytes().startswith(b"\x89PNG")


def test_without_results_the_table_says_so(monkeypatch, tmp_path):
    tables = load(ROOT / "scripts" / "readme_tables.py")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    shown = tables.rendered("x\n<!-- table: cuda -->\nold\n<!-- end -->\ny")
    assert shown == "x\n<!-- table: cuda -->\nNot measured.\n<!-- end -->\ny"
