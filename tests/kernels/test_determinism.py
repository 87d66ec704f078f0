"""The same gradients give the same bits: over runs, threads, alignments and instruction sets."""

from __future__ import annotations

import pytest
import torch

import gradkern
from tests.support import reference as ref
from tests.support.strategies import CHUNK, DTYPES, values

SIZES = [CHUNK * 3 + 13, 33, CHUNK, 1, CHUNK - 1, 0, 1009, CHUNK * 2 + 1]
ORDERS = [2.0, 1.0, 3.0, -1.0]


def gradients(dtype):
    return [values("normal", n, dtype, seed=i) for i, n in enumerate(SIZES)]


def everything(grads, p=2.0):
    """Bits of the norm and of the clipped gradients."""
    params = []
    for g in grads:
        q = torch.nn.Parameter(torch.zeros_like(g))
        q.grad = g.clone()
        params.append(q)
    stats = gradkern.measure(params, norm_type=p, count_zeros=True)
    total = gradkern.clip_grad_norm_(params, 0.7, norm_type=p)
    rows = (stats.norm, stats.l2_norm, stats.max_abs, stats.nonfinite, stats.zeros, stats.total_norm)
    return [ref.bits(t) for t in (*rows, total, *(q.grad for q in params))]


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_counts_and_runs(dtype, p, threads):
    grads = gradients(dtype)
    threads(1)
    alone = everything(grads, p)
    for count in (1, 2, 3, 4, 2):
        threads(count)
        assert everything(grads, p) == alone


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_runs_with_threads(dtype, threads):
    threads(4)
    grads = gradients(dtype)
    first = gradkern.get_total_norm(grads)
    for _ in range(30):
        assert ref.bits(gradkern.get_total_norm(grads)) == ref.bits(first)


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alignments(dtype, p):
    x = values("normal", 2 * CHUNK + 77, dtype, seed=9)
    expected = ref.bits(gradkern.get_total_norm([x], p))
    for shift in range(1, 18):
        memory = torch.empty(x.numel() + shift, dtype=dtype)
        moved = memory[shift:].copy_(x)
        assert ref.bits(gradkern.get_total_norm([moved], p)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_of_what_is_written(dtype):
    x = values("normal", CHUNK + 77, dtype, seed=9)
    results = set()
    for shift in range(9):
        moved = torch.empty(x.numel() + shift, dtype=dtype)[shift:].copy_(x)
        param = torch.nn.Parameter(torch.zeros_like(x))
        param.grad = moved
        gradkern.clip_grad_norm_([param], 0.3)
        results.add(ref.bits(moved))
    assert len(results) == 1


def test_strides_of_the_same_elements_in_memory():
    """A transposed tensor is read in memory order: the same bits as its storage."""
    x = torch.randn(300, 700)
    assert ref.bits(gradkern.get_total_norm([x.t()])) == ref.bits(gradkern.get_total_norm([x]))


EVERY_ISA = """
import hashlib, torch, gradkern
from tests.support import reference as ref
from tests.kernels.test_determinism import everything, gradients, DTYPES
print(gradkern.build_info()["cpu_instruction_set_in_use"])
for dtype in DTYPES:
    wide = dtype in (torch.float64, torch.complex128)
    for p in (2.0, 1.0):
        got = gradkern.get_total_norm(gradients(dtype), p).item()
        ref.assert_norm(got, ref.total_norm(gradients(dtype), p), wide=wide, ulp=ref.TOTAL_ULP)
        bits = b"".join(everything(gradients(dtype), p))
        print(dtype, p, hashlib.sha256(bits).hexdigest())
"""


def usable():
    flags = set()
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("flags"):
                flags = set(line.split())
                break
    wider = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    compiled = gradkern.build_info()["cpu_instruction_sets"].split()
    return [isa for isa in compiled if wider.get(isa, set()) <= flags]


@pytest.mark.integration
def test_instruction_sets(run_with_torch):
    """Each within the contract; where squares are exact in float64, in the very same bits."""
    lines = {}
    for isa in usable():
        done = run_with_torch(EVERY_ISA, GRADKERN_CPU_ISA=isa)
        assert done.returncode == 0, done.stderr
        name, *rest = done.stdout.splitlines()
        assert name == isa
        assert len(rest) == 12
        lines[isa] = [line for line in rest if "float64" not in line and "complex" not in line]
    assert len({tuple(v) for v in lines.values()}) == 1


def test_an_unknown_instruction_set_is_refused(run_with_torch):
    done = run_with_torch(
        "import torch, gradkern; gradkern.get_total_norm([torch.ones(3)])", GRADKERN_CPU_ISA="mmx"
    )
    assert done.returncode != 0
    assert "GRADKERN_CPU_ISA: expected one of" in done.stderr
    assert "got 'mmx'" in done.stderr
