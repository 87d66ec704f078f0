"""Tables and goals computed from the benchmarks' results, here from invented ones."""

import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


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
        "gradkern_graph": 1.06 * read,
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
        "host_seconds": {
            "gradkern": 40e-6,
            "gradkern_fresh": 200e-6,
            "gradkern_warm": 60e-6,
            "torch_foreach": 3e-3,
        },
        "kernels": {"gradkern": 2, "gradkern_fresh": 3},
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
        "scale",
        "clip that clips nothing",
        "clip that clips nothing, in a graph",
        "all statistics",
        "no slower than torch_foreach",
        "launches",
        "launches and copies, fresh gradients",
        "host time, fresh gradients",
        "host time, warm",
    }


def test_bars_that_are_missed(cuda_bars):
    read = (1 << 30) / 4e12
    assert missed(cuda_bars, row(gradkern_norm=1.2 * read)) == ["norm pass"]
    assert missed(cuda_bars, row(gradkern=1.05 * read + 9e-6)) == ["clip that clips nothing"]
    assert missed(cuda_bars, row(gradkern_graph=1.05 * read + 9e-6)) == [
        "clip that clips nothing, in a graph"
    ]
    assert missed(cuda_bars, row(gradkern_statistics=1.2 * read)) == ["all statistics"]
    assert missed(cuda_bars, row(torch_foreach=1.01 * read)) == ["no slower than torch_foreach"]
    assert missed(cuda_bars, row(**{"peer:apex": 1.01 * read})) == ["no slower than peer:apex"]
    many = row()
    many["kernels"].update(gradkern=3, gradkern_fresh=4)
    assert missed(cuda_bars, many) == ["launches", "launches and copies, fresh gradients"]
    slow = row(tensors=2000)
    slow["host_seconds"].update(gradkern_warm=81e-6, gradkern_fresh=241e-6)
    assert missed(cuda_bars, slow) == ["host time, fresh gradients", "host time, warm"]


def test_the_bar_of_a_scale_is_a_copy(cuda_bars):
    read = (1 << 30) / 4e12
    copy = 2 * read
    for norm, names in ((1.05 * read, []), (1.5 * read, ["norm pass"])):
        times = {"clipping": True, "gradkern_norm": norm, "torch_foreach": 1.0}
        assert missed(cuda_bars, row(**times, gradkern=norm + 1.09 * copy)) == names
        # A slower norm gives the scale no more room.
        assert missed(cuda_bars, row(**times, gradkern=norm + 1.14 * copy)) == [*names, "scale"]


@pytest.mark.parametrize(
    ("gradkern_step", "named"),
    [
        (1.0, []),
        (1.1, ["whole step, no slower than torch: a transformer: 1100000.0 µs, at most 1000000.0 µs"]),
    ],
)
def test_missed_bars_are_named_and_change_the_exit_status(cuda_bars, tmp_path, capsys, gradkern_step, named):
    results, file = tmp_path / "bench_cuda.json", tmp_path / "missed.json"
    steps = {"no_clipping": 0.9, "gradkern": gradkern_step, "torch": 1.0}
    results.write_text(json.dumps({"rows": [row()], "training_step_gpu_seconds": steps}))
    assert cuda_bars.main([str(results), "--missed", str(file)]) == (3 if named else 0)
    assert json.loads(file.read_text()) == named
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("MISSED")] == [f"MISSED {name}" for name in named]
    assert printed[-1] == f"{len(named)} of {len(printed) - 1} bars missed"


def test_a_small_tensor_has_more_room(cuda_bars):
    size, rate = 1 << 20, 4e12
    floor = 5e-6 + size / rate
    small = {"size": size, "gradkern": 1.3 * floor, "torch_foreach": 1.0, "gradkern_statistics": 1.3 * floor}
    assert missed(cuda_bars, row(), row(**small, gradkern_norm=1.3 * floor)) == []
    assert missed(cuda_bars, row(), row(**small, gradkern_norm=1.5 * floor)) == ["norm pass"]


def test_cuda_table_and_plot(tmp_path):
    tables = load(ROOT / "scripts" / "readme_tables.py")
    machine = {"gpu": "a GPU", "driver": "1.2", "torch": "2.13.0", "commit": "abc"}
    record = {"machine": machine, "rows": [row(), row(size=1 << 24), row(clipping=True)]}
    table = tables.cuda_table(record)
    assert "a GPU, driver 1.2, torch 2.13.0, commit abc." in table
    assert "| one tensor | float32 | no | 282 µs (40 µs) | 1.07 ms (3 ms) | 1.05 | 2 |" in table
    tables.cuda_plot(record, tmp_path / "cuda.png")
    assert (tmp_path / "cuda.png").read_bytes().startswith(b"\x89PNG")


def test_instruction_set_table():
    tables = load(ROOT / "scripts" / "readme_tables.py")
    machine = {"cpu": "a processor", "cores": 2, "torch": "2.13", "commit": "abc"}
    times = {"avx2": 2e-6, "baseline": 5e-6}
    measured = {"case": "MLP", "dtype": "float32", "call": "clip_grad_norm_", "seconds": times}
    lines = tables.instruction_set_table(
        {"machine": machine, "threads": 2, "rounds": 3, "rows": [measured]}
    ).splitlines()
    assert "Medians of 3 rounds." in lines[0]
    assert lines[2].endswith("| avx2 | baseline | baseline / avx2 |")
    assert lines[4] == "| MLP | float32 | clip_grad_norm_ | 2 µs | 5 µs | 2.5 |"


def test_without_results_the_table_says_so(monkeypatch, tmp_path):
    tables = load(ROOT / "scripts" / "readme_tables.py")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    shown = tables.rendered("x\n<!-- table: cuda -->\nold\n<!-- end -->\ny")
    assert (
        shown == "x\n<!-- table: cuda -->\n[Predicted](cuda-predictions.md), not measured.\n<!-- end -->\ny"
    )


class FakeEvent:
    """An event that takes the time on the host."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


@pytest.fixture
def bench_cuda(monkeypatch):
    """The benchmark on the CPU, with a stand-in for CUDA."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = load(ROOT / "benchmarks" / "bench_cuda.py")
    slept = []
    for name, fake in {
        "is_available": lambda: True,
        "get_device_name": lambda: "a GPU",
        "mem_get_info": lambda: (1 << 20, 1 << 20),
        "synchronize": lambda: None,
        "is_current_stream_capturing": lambda: False,  # an optimizer's step asks it
        "empty_cache": lambda: None,
        "Event": FakeEvent,
        "_sleep": slept.append,
    }.items():
        monkeypatch.setattr(bench.torch.cuda, name, fake)
    for name, value in {"DEVICE": "cpu", "ROTATED_BYTES": 1 << 16, "WIDTH": 24, "TOKENS": 2}.items():
        monkeypatch.setattr(bench, name, value)
    bench.slept = slept
    return bench


@pytest.mark.integration
def test_the_cuda_benchmark_runs_and_its_bars_are_judged(
    bench_cuda, cuda_bars, monkeypatch, tmp_path, capsys
):
    small, large = (bench_cuda.one_tensor(size, torch.float32) for size in (1024, 1 << 30))
    several = bench_cuda.Case("three", lambda: [(5,), (7, 9), (100,)])
    dtypes = [torch.bfloat16, torch.float32]
    cases = [(small, [torch.float32], True), (several, dtypes, False), (large, dtypes[1:], False)]
    monkeypatch.setattr(bench_cuda, "plan", lambda quick: (cases, []))
    # The profiler has no CUDA here.
    monkeypatch.setattr(bench_cuda, "kernel_count", lambda call: call() is None or 2)
    monkeypatch.setattr(bench_cuda, "replay", lambda params: lambda: None)
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import torch\nPEERS = {'mine': lambda grads: torch.stack([g.norm() for g in grads]).norm()}\n"
    )
    output = tmp_path / "cuda.json"
    bench_cuda.main(["--output", str(output), "--rounds", "3", "--peer", str(peer)])
    cuda_bars.main([str(output)])
    record = json.loads(output.read_text())
    assert record["machine"]["gpu"] == "a GPU"
    assert {"driver", "torch", "commit"} <= set(record["machine"])
    assert set(record["training_step_gpu_seconds"]) == {"no_clipping", "gradkern", "torch"}
    first, second = record["rows"]  # the third asks for more memory than there is
    assert (first["bytes"], first["clipping"]) == (1024, True)
    assert (second["tensors"], second["clipping"]) == (3, False)
    assert second["dtypes"] == ["bfloat16", "float32"] and second["bytes"] == 5 * 2 + 63 * 4 + 100 * 2
    for row in record["rows"]:
        assert {"read", "copy", "peer:mine", "gradkern", "torch_foreach"} <= set(row["gpu_seconds"])
        assert all(seconds > 0 for seconds in row["gpu_seconds"].values())
        assert row["kernels"]["gradkern"] == 2
        assert {"torch_foreach", "peer:mine"} <= set(row["host_seconds"])
    assert {"gradkern_fresh", "gradkern_warm"} <= set(second["host_seconds"])
    assert {"gradkern_fresh", "gradkern_graph"} <= set(second["gpu_seconds"])
    assert min(bench_cuda.slept) >= 2_000_000  # a millisecond at least, and twice the host's time
    printed = capsys.readouterr().out
    assert "one tensor of 1073741824 bytes: skipped, needs more device memory" in printed
    assert "norm pass: one tensor of 1024 bytes, float32, clipping: " in printed
    tables = load(ROOT / "scripts" / "readme_tables.py")
    assert "| three | bfloat16 + float32 | no |" in tables.cuda_table(record)


def test_quick_is_a_part_of_the_whole_plan(bench_cuda):
    whole, quick = (
        {(c.name, tuple(d), x) for c, d, x in itertools.chain(*bench_cuda.plan(q))} for q in (False, True)
    )
    assert quick < whole
    names = {name for name, _, _ in whole}
    assert {"one tensor of 1024 bytes", "GPT-2 small", "Llama 7B", "10,000 tensors of 1,024"} <= names
    assert f"one tensor of {30 << 30} bytes" in names
    sizes = {"Llama 7B": 6.74e9, "Llama 70B, one shard of 64": 69e9 / 64, "GPT-2 small": 124e6}
    for case in bench_cuda.MODELS:
        elements = sum(torch.Size(s).numel() for s in case.shapes())
        assert elements == pytest.approx(sizes.get(case.name, elements), rel=0.01)
