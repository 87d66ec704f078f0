"""Runs that are continued from their end or from an earlier step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradkern import GradMonitor, History
from gradkern.history.rows import WeightsRow
from gradkern.history.writer import HistoryWriter
from tests.support.files import assert_summary_is_right
from tests.support.loops import layout, small_model, step_row, train


def test_resume_goes_on_where_the_run_was(tmp_path):
    for expected_first in (1, 11):
        model = small_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradMonitor(model, optimizer, tmp_path) as monitor:
            assert monitor.step == expected_first - 1
            monitor.load_state_dict(monitor.state_dict())
            train(model, monitor, optimizer, 10)
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 21)) and not history.branches


def test_a_step_that_goes_backwards_starts_a_branch(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradMonitor(model, optimizer, tmp_path, update_every=4) as monitor:
        train(model, monitor, optimizer, 6)
        checkpoint = monitor.state_dict()
        first = train(model, monitor, optimizer, 14)
    with GradMonitor(model, optimizer, tmp_path, update_every=4) as monitor:
        monitor.load_state_dict(checkpoint)
        second = train(model, monitor, optimizer, 5)
        assert monitor.step == 11
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, 12))
        np.testing.assert_array_equal(history.total_norm[6:], [s.total_norm.item() for s in second])
        (branch,) = history.branches
        assert (branch.from_step, branch.replaced) == (7, 14)
        assert history.update_steps.tolist() == [1, 2, 4, 8]
    with History.open(tmp_path, superseded=True) as history:
        assert history.steps.tolist() == [*range(1, 21), *range(7, 12)]
        np.testing.assert_array_equal(history.total_norm[6:20], [s.total_norm.item() for s in first])
        assert len(history.summary(5)) == 5


def test_a_step_given_twice_replaces_the_first(tmp_path):
    where = layout(2)
    writer = HistoryWriter(tmp_path, {})
    weights = WeightsRow(3, where, True, np.ones(2, np.float32), np.ones(2, np.float32))
    writer.write([step_row(s, [s, s], where) for s in (1, 2)])
    writer.write([weights, step_row(3, [3, 3], where)])  # weights before their step: no branch
    writer.write([step_row(3, [9, 9], where), step_row(2, [8, 8], where)])
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == [1, 2] and history.norm[:, 0].tolist() == [1, 8]
        assert [(b.from_step, b.replaced) for b in history.branches] == [(3, 1), (2, 2)]


def test_summaries_survive_reopening_and_going_back_anywhere(tmp_path):
    where, steps = layout(3), 0
    generator = np.random.default_rng(5)
    for _ in range(25):
        writer = HistoryWriter(tmp_path, {})
        steps = int(generator.integers(max(0, steps - 90), steps + 1))
        count = int(generator.integers(1, 120))
        values = generator.random((count, 3), dtype=np.float32)
        writer.write([step_row(steps + 1 + i, row, where) for i, row in enumerate(values)])
        steps += count
        assert writer.last_step == steps
        writer.close()
        with History.open(tmp_path) as history:
            assert history.steps.tolist() == list(range(1, steps + 1))
            np.testing.assert_array_equal(history.norm[-count:], values)
            assert_summary_is_right(history, 7)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 200])
def test_one_step_recorded_again_and_again_opens_nothing_again(tmp_path, rows, monkeypatch):
    where, generator = layout(3), np.random.default_rng(rows)
    values = generator.random((rows + 40, 3), dtype=np.float32)
    writer = HistoryWriter(tmp_path, {})
    writer.write([step_row(1 + i, values[i], where) for i in range(rows)])
    opened: list[Path] = []
    real = History.open
    monkeypatch.setattr(History, "open", lambda run, **kw: opened.append(run) or real(run, **kw))
    for again in range(40):
        for _ in range(3):
            writer.write([step_row(rows, values[rows + again], where)])
    assert not opened
    monkeypatch.undo()
    writer.write([step_row(rows + 1 + i, values[rows + i], where) for i in range(40)])
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, rows + 41))
        np.testing.assert_array_equal(history.norm[rows - 1], values[-1])
        assert [(b.from_step, b.replaced) for b in history.branches] == [(rows, 1)] * 120
        assert_summary_is_right(history, 7)


def test_short_steps_back_anywhere_without_reopening(tmp_path):
    where, generator, steps = layout(2), np.random.default_rng(8), 0
    shown: list[float] = []
    writer = HistoryWriter(tmp_path, {})
    replaced = []
    for _ in range(200):
        back = int(generator.integers(0, min(steps, 12) + 1)) if generator.random() < 0.7 else 0
        count = int(generator.integers(1, 16))
        steps -= back
        del shown[steps:]
        replaced += [back] * (back > 0)
        values = generator.random((count, 2), dtype=np.float32)
        writer.write([step_row(steps + 1 + i, row, where) for i, row in enumerate(values)])
        steps += count
        shown += values[:, 0].tolist()
    writer.close()
    with History.open(tmp_path) as history:
        assert history.steps.tolist() == list(range(1, steps + 1))
        assert history.norm[:, 0].tolist() == shown
        assert [b.replaced for b in history.branches] == replaced
        for points in (1, 5, 40):
            assert_summary_is_right(history, points)
