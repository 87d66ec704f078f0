"""README.md is true: the example and its cure run as printed, the accuracy table, the measured tables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradkern
from gradkern.diagnosis.show import as_text

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMERICS = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")


NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d.]*(?:e[-+]?\d+)?(?![\w.])")


def test_the_finding_is_that_of_the_loop_above(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.S)
    exec(compile(example, "README.md", "exec"), {})
    with gradkern.History.open("runs/first") as history:
        said = as_text(gradkern.diagnose(history)).splitlines()
    expected = [line for line in shown.splitlines() if line.strip() != "…"]
    # Another processor's matrix products differ in the last digits.
    assert len(expected) == 9
    for line in expected:
        assert NUMBER.sub("", line) in [NUMBER.sub("", other) for other in said], line


def test_the_first_remedy_cures_the_example(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)

    def trained(code: str, folder: str) -> tuple[list[gradkern.Finding], float]:
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        exec(compile(code, "README.md", "exec"), {})
        with gradkern.History.open("runs/first") as history:
            return list(gradkern.diagnose(history)), float(history.loss[-5:].mean())

    (alarm, *_), loss = trained(example, "sigmoid")
    remedy = alarm.remedies[0].code
    initialization = remedy[remedy.index("for module in model.modules()") :]
    cured = example.replace("Sigmoid()", "ReLU()").replace("optimizer =", f"{initialization}\noptimizer =", 1)
    found, less = trained(cured, "relu")
    assert [finding.kind for finding in found if finding.severity != "info"] == []
    assert loss > 0.65 and less < 0.3


@pytest.mark.parametrize(
    ("value", "count", "dtype"),
    [(1.0, 5_000_000, torch.bfloat16), (1e20, 1000, torch.float32), (1e-25, 1000, torch.float32)],
)
def test_accuracy_table(value, count, dtype):
    norm = float(gradkern.get_total_norm([torch.full((count,), value, dtype=dtype)]))
    (row,) = re.findall(
        rf"^\| [^|]*{'bfloat16' if count > 1000 else f'{value:g}'.replace('e+', 'e')} .*$", NUMERICS, re.M
    )
    _, _, torch_says, gradkern_says, float64_says, _ = row.split("|")
    assert f"{norm:.6g}" == gradkern_says.strip() == float64_says.strip() != torch_says.strip()


def test_measured_tables_come_from_the_results():
    script = ROOT / "scripts" / "readme_tables.py"
    run = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert run.returncode == 0


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
