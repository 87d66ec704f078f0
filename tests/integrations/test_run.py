"""`gradkern run`: unmodified scripts, in one process and under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import gradkern

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
import torch
from torch.nn.utils import clip_grad_norm_

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    for _ in range(2):
        loss = model(torch.randn(5, 6)).square().mean() / 2
        loss.backward()
        print("half", loss.item())
    print("norm", clip_grad_norm_(model.parameters(), 0.01).item())
    optimizer.step()
print(sys.argv[1:])
"""

REPLACED = (
    "gradkern run: replaced torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_, "
    "torch.nn.utils.get_total_norm, torch.nn.utils.clip_grads_with_norm_"
)


def run(tmp_path, *words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "gradkern", "run", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def script(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    return "train.py"


def test_a_script_is_recorded(tmp_path, script):
    done = run(tmp_path, "--monitor", "runs/first", script, "--lr", "0.1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "first"
    assert done.stderr.splitlines() == [
        f"gradkern run: recorded up to step 3 in {folder}; for findings: gradkern diagnose {folder}",
        REPLACED,
    ]
    assert "['--lr', '0.1']" in done.stdout
    printed = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("norm")]
    history = gradkern.History.open(folder)
    np.testing.assert_allclose(history.total_norm, printed, rtol=1e-6)
    halves = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("half")]
    np.testing.assert_allclose(history.loss, np.reshape(halves, (3, 2)).sum(axis=1), rtol=1e-6)
    assert history.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert history.lr.tolist() == [0.1] * 3 and history.clipped.all()


def test_several_optimizers_of_a_model(tmp_path):
    text = SCRIPT.replace(
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)",
        "optimizer, other = (torch.optim.SGD(model[i].parameters(), lr=r) for i, r in ((0, 0.1), (2, 0.2)))",
    ).replace("    optimizer.step()\n", "    optimizer.step()\n    other.step()\n    other.zero_grad()\n")
    (tmp_path / "train.py").write_text(text)
    done = run(tmp_path, "--monitor", "run", "train.py")
    assert "recorded up to step 3 in" in done.stderr, done.stderr
    assert gradkern.History.open(tmp_path / "run").lr_groups.tolist() == [[0.1, 0.2]] * 3


def test_without_a_monitor_only_the_functions_are_replaced(tmp_path):
    (tmp_path / "look.py").write_text("import torch; print(torch.nn.utils.clip_grad_norm_.__module__)")
    done = run(tmp_path, "look.py")
    assert done.stdout.strip() == "gradkern.integrations.bridge", done.stderr


def test_modules_from_before_the_patch_are_named(tmp_path):
    """A plug-in that torch itself imports at its end."""
    site = tmp_path / "site"
    (site / "early-1.0.dist-info").mkdir(parents=True)
    (site / "early-1.0.dist-info" / "METADATA").write_text("Name: early\nVersion: 1.0\n")
    (site / "early-1.0.dist-info" / "entry_points.txt").write_text("[torch.backends]\nearly = early:start\n")
    (site / "early.py").write_text(
        "from torch.nn.utils import clip_grad_norm_, clip_grad_value_ as by_value\ndef start(): pass\n"
    )
    (tmp_path / "train.py").write_text(f"import torch, early\nprint(early.by_value.__module__)\n{SCRIPT}")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = run(tmp_path, "train.py", PYTHONPATH=path)
    assert done.stdout.startswith("torch.nn.utils.clip_grad\n"), done.stderr
    assert done.stderr.splitlines() == [
        REPLACED,
        "gradkern run: not replaced in modules that were imported before: early.by_value",
    ]


def test_another_sitecustomize_is_run_too(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('the other one')")
    (tmp_path / "look.py").write_text("import sys; print('torch' in sys.modules)")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    done = run(tmp_path, "look.py", PYTHONPATH=path)
    assert done.stdout.split("\n")[-3:] == ["the other one", "False", ""], done.stdout + done.stderr


def test_children_of_torchrun_inherit_it(tmp_path, script):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = run(tmp_path, "--monitor", "run", *torchrun, script)
    assert done.returncode == 0, done.stderr
    history = gradkern.History.open(tmp_path / "run")
    assert history.steps.tolist() == [1, 2, 3] and history.has_loss.all()
    said = [line for line in done.stderr.splitlines() if line.startswith("gradkern run:")]
    assert "recorded up to step 3" in said[0] and said[1:] == [REPLACED]  # torchrun itself says nothing


def test_what_cannot_be_run(tmp_path):
    assert run(tmp_path).returncode == 2
    done = run(tmp_path, "no-such-program-anywhere")
    assert done.returncode == 127 and "command not found" in done.stderr


@pytest.mark.parametrize(
    ("options", "nothing"), [([], "changed"), (["--monitor", "run"], "recorded")], ids=["plain", "monitor"]
)
def test_a_training_without_any_clip_is_told_so(tmp_path, options, nothing):
    (tmp_path / "train.py").write_text(
        SCRIPT.replace("clip_grad_norm_(model.parameters(), 0.01).item()", "'not clipped'")
    )
    done = run(tmp_path, *options, "train.py")
    line, replaced = done.stderr.splitlines()
    assert replaced == REPLACED
    assert "3 steps of an optimizer and no call of torch.nn.utils.clip_grad_norm_ were seen" in line
    assert f"so nothing was {nothing}" in line


def test_what_is_said_of_a_training_that_undoes_the_patch(tmp_path):
    (tmp_path / "train.py").write_text(f"import torch, gradkern\ngradkern.unpatch_torch()\n{SCRIPT}")
    lines = run(tmp_path, "train.py").stderr.splitlines()
    assert "no call of torch.nn.utils.clip_grad_norm_" in lines[0]
    assert lines[1:] == ["gradkern run: the program has undone the patch"]


def test_nothing_is_said_of_a_program_that_does_not_train(tmp_path):
    (tmp_path / "look.py").write_text("import torch")
    assert run(tmp_path, "--monitor", "run", "look.py").stderr == ""
