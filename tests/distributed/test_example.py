"""examples/fsdp2_train.py under torchrun: trained, resumed from an earlier checkpoint, one history."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradkern

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def torchrun(folder: Path, steps: int) -> str:
    ranks = ["--standalone", "--nproc-per-node", "2", str(ROOT / "examples" / "fsdp2_train.py")]
    arguments = ["--folder", str(folder), "--steps", str(steps), "--save-every", "5"]
    package = str(Path(gradkern.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *ranks, *arguments],
        env={**os.environ, "PYTHONPATH": package, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


def test_the_example_trains_records_and_resumes(tmp_path):
    first = torchrun(tmp_path, 10)
    assert "resumed" not in first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "gradients"]
    with gradkern.History.open(tmp_path / "gradients") as history:
        before = history.total_norm, history.loss, history.norm
    shutil.rmtree(tmp_path / "checkpoints" / "step-000010")  # as if it had been killed on the way there
    second = torchrun(tmp_path, 10)
    assert "resumed after step 5" in second
    last = re.search(r"step   10 .*", first)
    assert last and last.group() in second  # to the last printed digit
    with gradkern.History.open(tmp_path / "gradients") as history:
        assert history.steps.tolist() == list(range(1, 11))
        for one, other in zip(before, (history.total_norm, history.loss, history.norm)):
            assert one == pytest.approx(other, rel=1e-6)
        assert history.loss[-1] < history.loss[0]
    with gradkern.History.open(tmp_path / "gradients", superseded=True) as history:
        assert len(history.steps) == 15  # steps 6 to 10 twice
