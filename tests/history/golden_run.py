"""The run that the golden files hold: one small file of each version of the format, written by its own code.

``python tests/history/golden_run.py FILE`` writes that of the current version. Files of earlier versions
are never written again.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gradkern.history import format, writer
from gradkern.history.layout import Layout
from gradkern.history.rows import (
    AmendmentRow,
    EventRow,
    FactsRow,
    GroupValues,
    HistogramRow,
    Row,
    StepRow,
    WeightsRow,
    ZerosRow,
)

FOLDER = Path(__file__).parent / "golden"
NAMES = ("a.weight", "a.bias", "b.weight")
STEPS = 300
BACK_TO = 271  # after step 280

DETAILS = {
    "shape": [[3, 2], [2], [2, 2]],
    "dtype": ["float32"] * 3,
    "trainable": [True] * 3,
    "group": [0] * 3,
    "kind": ["Linear"] * 3,
}


def step_row(number: int, layout: Layout, **more: Any) -> StepRow:
    """A recorded step in version 1; values repeat every five steps, so that files are small."""
    n = number % 5 + 1
    norm = np.array([n, 2 * n, -1 if n % 2 else 3 * n], np.float32)
    return StepRow(
        number,
        1000.0,
        layout,
        norm,
        norm,
        float(n),
        zeros=np.array([0, n % 2, 0]),
        nonfinite=np.array([0, 1, 0]) if number == 7 else None,
        loss=1.0 / n,
        clip_coef=0.5 if n % 3 == 0 else 1.0,
        skipped=number == 7,
        phase="before_clip",
        inv_scale=0.25,
        lr=(0.1, 0.2),
        **more,
    )


def periodic_rows(layout: Layout) -> list[Row]:
    """Weights and a histogram of the last step, in version 1."""
    counts = np.zeros((3, len(format.EXPONENTS)), np.int64)
    counts[1, 5] = 2
    under = np.full((3, len(format.FORMATS)), 0.5, np.float32)
    weights = np.array([1, 2, 3], np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    return [WeightsRow(STEPS, layout, True, *weights), HistogramRow(STEPS, layout, counts, under)]


def newer_values(number: int) -> dict[str, Any]:
    """The values that version 2 adds to a step."""
    return {
        "threshold": 2.0,
        "factor": np.array([1.0, 0.5, 1.0], np.float32) if number == 9 else None,
        "extra": {"attn/max_logit": number / 4, "loss/G": 1.0} if number % 2 == 0 else {},
        "groups": {"rest": GroupValues(1.0, 0.5, 2.0), "muon": GroupValues(4.0, float("nan"), float("nan"))},
    }


def newer_rows(layout: Layout) -> list[Row]:
    """The rows that version 2 adds, apart from steps."""
    return [
        ZerosRow(STEPS, layout, np.array([1, 0.5, np.nan], np.float32), np.array([-1, 1, -1])),
        EventRow(275, "finding", {"kind": "vanishing_gradient", "layers": ["a.weight"]}, 1000.0),
        AmendmentRow(STEPS, {"loss": 0.125, "eval/loss": 7.0}),
        FactsRow(STEPS, {"modules": {"a": "Linear", "b": "Linear"}, "loss_scale": True}),
    ]


def write(folder: Path) -> None:
    """The run, with the current code."""
    layout = Layout(NAMES, np.array([6, 2, 4]), np.arange(3), DETAILS)
    out = writer.HistoryWriter(folder, {"gradkern": "0.2", "norm_type": 2.0, "every": 1}, "TRUNCATE")
    for first, last in ((1, 280), (BACK_TO, STEPS)):
        out.write([step_row(s, layout, **newer_values(s)) for s in range(first, last + 1)])
    out.write([*periodic_rows(layout), *newer_rows(layout)])
    out.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        Path(sys.argv[1]).write_bytes(lzma.compress((Path(folder) / format.DATABASE).read_bytes(), preset=9))
