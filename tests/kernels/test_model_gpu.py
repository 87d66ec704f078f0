"""tests/cuda on the model of a CUDA device (tests/support/model_gpu.py): the tests that need no CUDA
graph."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BINDING = """
from tests.support import model_gpu
library = model_gpu.install()
import torch, gradkern, gradkern.policies
from gradkern.kernels.extension import EXTENSION

def clipped():
    params = [torch.nn.Parameter(torch.zeros(n, device="cuda")) for n in (1, 7, 3000, 40000)]
    for p in params:
        p.grad = torch.arange(p.numel(), dtype=torch.float32).to("cuda")
    before = library.model_gpu_launches(), library.model_gpu_copies()
    total = gradkern.clip_grad_norm_(params, 1.0)
    after = library.model_gpu_launches(), library.model_gpu_copies()
    counts = [b - a for a, b in zip(before, after)]
    return torch.cat([total.reshape(1), *(p.grad for p in params)]).cpu(), counts

eager, counts = clipped()
assert counts == [2, 1], counts
library.model_gpu_capture(1)
captured, counts = clipped()
assert counts == [3, 0], counts  # a kernel writes the table, which both read
assert torch.equal(eager, captured)

torch.cuda.is_current_stream_capturing = lambda: True
for name in ("PerLayerNorm", "Value", "GlobalNorm"):
    policy = getattr(gradkern.policies, name)(1.0)
    layer = torch.nn.Linear(3, 2).to("cuda")
    layer.weight.grad = torch.ones(2, 3, device="cuda")
    try:
        gradkern.GradClipper(layer, policy=policy).clip_()
        raise SystemExit(f"{policy} copies from the host during a capture")
    except RuntimeError as error:
        assert "run clip_() once outside the graph" in str(error), error
library.model_gpu_capture(0)
torch.cuda.is_current_stream_capturing = lambda: False

grads = [torch.ones(3, device="cuda"), None, torch.ones(5, device="cuda", dtype=torch.bfloat16)]
assert EXTENSION.is_plain(grads)
assert not EXTENSION.is_plain([*grads, torch.ones(3)])
assert not EXTENSION.is_plain([*grads, torch.ones(3, device="cuda:1")])
assert not EXTENSION.is_plain([*grads, grads[0][1:]])

# What waits for the device leaves the GIL to the threads whose work the device may wait for.
import ctypes
waited = ctypes.CDLL(str(model_gpu.build()[1])).model_gpu_waited
waited.restype = ctypes.c_int64
layer = torch.nn.Linear(3, 2).to("cuda")
layer.weight.grad = torch.ones(2, 3, device="cuda")
clipper = gradkern.GradClipper(layer, max_norm=1.0, on_nonfinite="raise")
calls = (
    lambda: gradkern.clip_grad_norm_(layer.parameters(), 1.0, error_if_nonfinite=True),
    lambda: gradkern.get_total_norm([layer.weight.grad], error_if_nonfinite=True),
    clipper.clip_,
)
for call in calls:
    before = waited(0), waited(1)
    call()
    assert waited(0) > before[0] and waited(1) == before[1], (before, waited(0), waited(1))
"""


@pytest.mark.integration
def test_launches_copies_and_captures(run_python):
    done = run_python(BINDING)
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_cuda_on_a_model_of_a_device():
    files = [f"tests/cuda/test_cuda_{name}.py" for name in ("correctness", "policies", "checks")]
    # The model has no graphs and no sparse tensors. The adversarial sums take minutes: see the C++ tests.
    left_out = "not (replay or adversarial or lambda)"
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "tests.support.model_gpu",
                "-p",
                "no:cacheprovider",
            ),
            *("-m", "cuda", "-k", left_out, *files),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed.group(1)) > 150, done.stdout
