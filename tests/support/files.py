"""Helpers for tests of a run's file."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path

import numpy as np

from gradkern import History
from gradkern.history import format


def assert_summary_is_right(history: History, points: int) -> None:
    summary = history.summary(points)
    assert 0 < len(summary) <= points and summary.rows.sum() == len(history)
    start = 0
    rms, bad = history.rms, history.nonfinite
    for p in range(len(summary)):
        rows = slice(start, start + summary.rows[p])
        start = rows.stop
        block = np.where(np.isfinite(rms[rows]), rms[rows], np.nan).astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN columns
            np.testing.assert_allclose(summary.rms[p], np.nanmean(block, axis=0), rtol=1e-5)
            np.testing.assert_allclose(summary.rms_min[p], np.nanmin(block, axis=0), rtol=1e-6)
            np.testing.assert_allclose(summary.rms_max[p], np.nanmax(block, axis=0), rtol=1e-6)
        np.testing.assert_array_equal(summary.nonfinite[p], bad[rows].sum(axis=0))
        assert (summary.step0[p], summary.step1[p]) == (history.steps[rows][0], history.steps[rows][-1])
        np.testing.assert_allclose(summary.total_norm[p], history.total_norm[rows].mean(), rtol=1e-6)
        np.testing.assert_allclose(summary.total_norm_max[p], history.total_norm[rows].max())


def damage(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / format.DATABASE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
