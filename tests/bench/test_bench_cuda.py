"""The flow of benchmarks/bench_cuda.py, run on the CPU with stand-ins for a GPU."""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from gradkern.bench.cases import Case, gpt2_small

ROOT = Path(__file__).resolve().parents[2]


class Event:
    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return max(1e3 * (end.at - self.at), 1e-3)


class Graph:
    def replay(self):
        pass


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("bench_cuda")
    for name, value in {
        "is_available": lambda: True,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (1 << 40, 1 << 40),
        "get_device_name": lambda: "a stand-in",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in {
        "DEVICE": "cpu",
        "ROTATED_BYTES": 1 << 14,
        "WIDTH": 24,
        "TOKENS": 4,
        "kernel_count": lambda call: 2,
        "driver": lambda: "none",
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.integration
def test_bench_cuda_runs_to_its_end(bench, monkeypatch, tmp_path, capsys):
    bf16, fp32 = [torch.bfloat16], [torch.float32]
    many = Case("2,000 tensors of 4,096", lambda: [(4,)] * 2000)
    cases = [(bench.one_tensor(1024, bf16[0]), bf16, clips) for clips in (False, True)]
    monkeypatch.setattr(bench, "plan", lambda quick: ([cases[0], (many, fp32, False)], cases[1:]))
    peer = tmp_path / "peer.py"
    peer.write_text("import torch\nPEERS = {'plain': torch.nn.utils.get_total_norm}\n")
    output = tmp_path / "bench_cuda.json"
    bench.main(["--quick", "--rounds", "1", "--output", str(output), "--peer", str(peer)])
    record = json.loads(output.read_text())
    assert [(row["case"], row["clipping"]) for row in record["rows"]] == [
        ("one tensor of 1024 bytes", False),
        ("2,000 tensors of 4,096", False),
        ("one tensor of 1024 bytes", True),
    ]
    for row in record["rows"]:
        timed = {
            "gradkern",
            "gradkern_norm",
            "gradkern_statistics",
            "torch_foreach",
            "peer:plain",
            "read",
            "copy",
        }
        assert timed <= set(row["gpu_seconds"])
    of_list = record["rows"][1]
    assert of_list["host_seconds"]["gradkern_fresh"] > 0 and of_list["host_seconds"]["gradkern_warm"] > 0
    assert of_list["gpu_seconds"]["gradkern_fresh"] > 0 and of_list["gpu_seconds"]["gradkern_graph"] >= 0
    assert of_list["kernels"] == {"gradkern": 2, "gradkern_graph": 2, "gradkern_fresh": 2}
    assert set(record["training_step_gpu_seconds"]) == {"no_clipping", "gradkern", "torch"}
    capsys.readouterr()
    status = importlib.import_module("cuda_bars").main([str(output)])
    printed = capsys.readouterr().out
    assert status == (3 if "MISSED" in printed else 0)
    assert "host time, fresh gradients: 2,000 tensors of 4,096" in printed
    assert "launches: one tensor of 1024 bytes, bfloat16, not clipping: 2 launches, at most 2" in printed

    predict = runpy.run_path(str(ROOT / "scripts" / "predict_cuda.py"), run_name="predict_cuda")
    assert predict["main"](["--measured", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "measured on a stand-in" in printed
    assert "one tensor of 1024 bytes" in printed


def test_autograd_makes_the_fresh_gradients(bench):
    params = bench.make_parameters([(3, 4), (5,), (2,)], [torch.float32, torch.bfloat16])
    before = [p.grad for p in params]
    steps = bench.TrainingSteps(params)
    steps.run()
    first = [p.grad for p in params]
    steps.run()
    for p, old, one, factor in zip(params, before, first, steps.factors):
        assert p.grad.dtype == p.dtype and p.grad.is_contiguous()
        assert torch.equal(p.grad, factor) and torch.equal(p.grad, one)
        assert len({t.data_ptr() for t in (p.grad, old, one, factor)}) == 4
    assert [t.shape for t in steps.kept] == [params[2].shape] * 2


def test_a_step_of_training_precedes_every_fresh_call(bench, monkeypatch):
    params = bench.make_parameters([(7,), (2,)], [torch.float32])
    before = params[0].grad
    seen, done = [], []
    monkeypatch.setattr(bench.gradkern, "clip_grad_norm_", lambda params, limit: seen.append(params[0].grad))
    monkeypatch.setattr(bench, "kernel_count", lambda call: call() or 3)
    host, gpu, kernels = bench.measure_fresh(params, 2, lambda: done.append("flush"))
    assert host > 0 and gpu > 0 and kernels == 3
    assert len(seen) == 9 + 4 + 1  # on the host; on the GPU, of which two warm up; in the profile
    assert len({g.data_ptr() for g in [before, *seen]}) == len(seen) + 1
    assert len(done) == 4


@pytest.mark.parametrize("quick", [False, True])
def test_what_has_bars_comes_first(bench, quick):
    first, rest = bench.plan(quick)
    names = list(dict.fromkeys(case.name for case, _, _ in first))
    assert names == [f"one tensor of {1 << 30} bytes", "2,000 tensors of 4,096", "10,000 tensors of 1,024"]
    assert {(tuple(dtypes), clips) for case, dtypes, clips in first if case.name == names[1]} == {
        ((dtype,), clips) for dtype in (torch.bfloat16, torch.float32) for clips in (False, True)
    }
    assert rest[0][0].name == f"one tensor of {256 << 20} bytes"
    assert any(case.shapes is gpt2_small for case, _, _ in rest)
    assert any(len(dtypes) > 1 for _, dtypes, _ in rest) == (not quick)


def test_a_run_that_is_cut_off_keeps_the_steps(bench, monkeypatch, tmp_path):
    output = tmp_path / "bench_cuda.json"
    first, rest = (bench.one_tensor(size, torch.float32) for size in (1024, 2048))

    def measure_case(case, *_):
        if case is rest:
            raise KeyboardInterrupt
        return {"gpu_seconds": {}, "dtypes": []}

    fp32 = [torch.float32]
    for name, value in {
        "plan": lambda quick: ([(first, fp32, True)], [(rest, fp32, True)]),
        "training_step": lambda clip: 1.0,
        "measure_case": measure_case,
    }.items():
        monkeypatch.setattr(bench, name, value)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--output", str(output)])
    record = json.loads(output.read_text())
    assert len(record["rows"]) == 1
    assert record["training_step_gpu_seconds"] == {"no_clipping": 1.0, "gradkern": 1.0, "torch": 1.0}


def test_small_lists_are_copied_in_one_launch(bench):
    """The floor of a scale."""
    for copies, launches in ((1, 2), (3, 1)):
        copy = bench.floors_of(64, copies)["copy"]
        with torch.profiler.profile() as profile:
            copy()
        assert sum(event.name == "aten::copy_" for event in profile.events()) == launches


def test_peers_that_are_installed_are_found_and_others_are_explained(monkeypatch, capsys):
    def module(name, **members):
        made = types.ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    def applier(kernel, overflow, lists, per_tensor):
        assert len({t.dtype for t in lists[0]}) == 1
        return kernel(lists[0]), None

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **options: zeros(*size, **options))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    peers = importlib.import_module("cuda_peers")
    for package in ("apex", "nemo_automodel", "nemo_automodel.components"):
        module(package, __path__=[])
    for package in ("nemo_automodel.components.training", "nemo_automodel.components.training.triton"):
        module(package, __path__=[])
    module("apex.multi_tensor_apply", multi_tensor_applier=applier)
    module(
        "amp_C", multi_tensor_l2norm=lambda grads: torch.stack([g.float().norm() for g in grads]).norm()[None]
    )
    module(
        "nemo_automodel.components.training.triton.grad_norm",
        multi_tensor_sumsq=lambda grads: sum(g.double().square().sum() for g in grads),
    )
    found = peers.find()
    grads = [torch.full((4,), 1.0), torch.full((8,), 1.5, dtype=torch.bfloat16), torch.full((3,), 1.0)]
    assert set(found) == {"apex", "nemo_automodel"}
    for total_norm in found.values():
        assert float(total_norm(grads)) == pytest.approx(5.0)
    printed = capsys.readouterr().out
    assert printed.startswith("peer transformer_engine: not here (") and printed.count("\n") == 1
    assert "to install it: pip install --no-build-isolation 'transformer_engine[pytorch]'" in printed
