"""`RollbackGuard`: a faulty training returns to a good state, a limited number of times."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import gradkern
from gradkern.diagnosis import Finding


class Training:
    """A regression that keeps a copy of its state every ten steps, as long as its weights are finite."""

    def __init__(self, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.5)
        self.clipper = gradkern.GradClipper(self.model, 10.0, on_nonfinite="skip")
        self.guard = gradkern.RollbackGuard(self.restore, **options)
        self.restored = 0
        self.keep()

    def keep(self):
        self.kept = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def restore(self):
        self.restored += 1
        self.model.load_state_dict(self.kept[0])
        self.optimizer.load_state_dict(copy.deepcopy(self.kept[1]))

    def run(self, steps, break_at=(), monitor=None):
        generator = torch.Generator().manual_seed(1)
        losses = []
        for step in range(steps):
            if step in break_at:
                nn.init.constant_(self.model.weight, math.nan)
            x = torch.randn(16, 4, generator=generator)
            loss = (self.model(x) - x.sum(dim=1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            stats = self.clipper.clip_()
            losses.append(loss.item())
            if monitor is not None:
                monitor.record(stats, loss=loss)
            if self.guard.check(stats, monitor):
                continue
            if not stats.skip_step:
                self.optimizer.step()
                if step % 10 == 0 and step not in break_at:
                    self.keep()
        return losses


def finding(severity="severe", step=5):
    return Finding("exploding_gradient", severity, first_step=step, last_step=step)


def test_a_broken_training_recovers(tmp_path):
    training = Training(max_skips=3, window=20, every=1, cool_down=5)
    monitor = gradkern.GradMonitor(training.model, training.optimizer, tmp_path)
    losses = training.run(60, break_at={25}, monitor=monitor)
    assert [math.isnan(x) for x in losses[24:29]] == [False, True, True, True, False]
    assert losses[-1] < 1e-3 < losses[0] and training.restored == training.guard.rollbacks == 1
    with monitor.history() as history:
        (event,) = [e for e in history.events if e.kind == "rollback"]
    monitor.close()
    assert event.step == 28 and event.data["count"] == 1 and event.data["budget"] == 3
    assert event.data["reason"] == "3 of the latest 20 steps were skipped"


def test_without_the_guard_it_does_not():
    training = Training(max_skips=3, window=20, every=1, budget=0)
    with pytest.raises(gradkern.RollbackError, match="has not recovered after 0 rollbacks"):
        training.run(60, break_at={25})
    assert training.restored == 0


def test_after_too_many_rollbacks_it_stops_and_says_why(tmp_path):
    training = Training(max_skips=3, window=20, every=1, cool_down=2, budget=2)
    monitor = gradkern.GradMonitor(training.model, training.optimizer, tmp_path)
    with pytest.raises(gradkern.RollbackError, match="3 of the latest 20 steps") as caught:
        training.run(200, break_at=range(25, 200), monitor=monitor)
    assert training.restored == 2
    assert caught.value.findings and caught.value.findings[0].title in str(caught.value)
    with monitor.history() as history:
        assert [e.kind for e in history.events if e.kind != "skip"] == ["rollback", "rollback", "stop"]
    monitor.close()


def test_cool_down_keeps_rollbacks_apart():
    training = Training(max_skips=1, window=10, every=1, cool_down=10, budget=100)
    training.run(64, break_at=range(0, 100))
    assert training.restored == 6  # at steps 1, 12, 23, …


def test_old_skips_leave_the_window():
    training = Training(max_skips=2, window=5, every=1)
    good, bad = (stats_of(training.clipper, value) for value in (1.0, math.nan))
    for stats in [bad, good, good, good, good, bad, good, good]:
        assert not training.guard.check(stats)
    assert training.guard.check(bad)


def stats_of(clipper, value):
    for p in clipper._plan.params:
        p.grad = torch.full_like(p, value)
    return clipper.clip_()


def test_verdicts_are_read_each_so_many_steps():
    training = Training(max_skips=1, window=20, every=4)
    bad = stats_of(training.clipper, math.nan)
    assert [training.guard.check(bad) for _ in range(8)] == [False, False, False, True] + [False] * 4


def test_a_severe_finding_is_a_cause():
    training = Training(every=1, cool_down=2)
    good = stats_of(training.clipper, 1.0)
    training.guard.found(finding("warning"))
    assert not training.guard.check(good)
    training.guard.found(finding())
    assert training.guard.check(good) and training.restored == 1
    assert not training.guard.check(good)  # told once


def test_the_monitor_tells_the_guard(tmp_path):
    training = Training(every=1)
    monitor = gradkern.GradMonitor(training.model, None, tmp_path, on_finding=training.guard.found)
    good = stats_of(training.clipper, 1.0)
    for _ in range(60):
        monitor.record(stats_of(training.clipper, math.nan), loss=math.nan)
    monitor.close()
    assert training.guard._severe is not None
    assert training.guard.check(good)


def test_its_state_goes_on():
    first, second = (Training(max_skips=3, window=50, every=2) for _ in range(2))
    bad, good = (stats_of(first.clipper, v) for v in (math.nan, 1.0))
    for stats in (bad, good, bad):
        first.guard.check(stats)
    second.guard.load_state_dict(first.guard.state_dict())
    assert not first.guard.check(good) and not second.guard.check(good)
    assert not first.guard.check(bad) and first.guard.check(good)
    assert not second.guard.check(bad) and second.guard.check(good)
    with pytest.raises(ValueError, match="load_state_dict] state: expected"):
        first.guard.load_state_dict({"step": 3})


def test_a_state_that_is_restored_gives_no_budget_back():
    training = Training(max_skips=1, every=1, cool_down=0, budget=2)
    fresh = training.guard.state_dict()
    training.guard._restore = lambda: training.guard.load_state_dict(fresh)
    bad = stats_of(training.clipper, math.nan)
    assert training.guard.check(bad) and training.guard.check(bad)
    with pytest.raises(gradkern.RollbackError):
        training.guard.check(bad)


@pytest.mark.parametrize("name", ["max_skips", "window", "budget", "cool_down", "every"])
def test_arguments_are_checked(name):
    with pytest.raises(ValueError, match=rf"\[RollbackGuard\] {name}: expected an integer"):
        gradkern.RollbackGuard(lambda: None, **{name: -1})
    with pytest.raises(TypeError, match=r"\[RollbackGuard\] restore: expected a function, got None"):
        gradkern.RollbackGuard(None)


def test_skips_that_no_window_holds_are_refused():
    with pytest.raises(
        ValueError, match=r"\[RollbackGuard\] max_skips: expected at most the window of 10 steps"
    ):
        gradkern.RollbackGuard(lambda: None, max_skips=50, window=10)


def test_a_rollback_is_an_event_of_the_branch_that_goes_on(tmp_path):
    training = Training(max_skips=3, window=20, every=1, cool_down=5)
    monitor = gradkern.GradMonitor(training.model, training.optimizer, tmp_path)
    restore = training.guard._restore
    training.guard._restore = lambda: (restore(), monitor.load_state_dict({"step": 20}))
    training.run(40, break_at={25}, monitor=monitor)
    with monitor.history() as history:
        (event,) = [e for e in history.events if e.kind == "rollback"]
    monitor.close()
    assert event.data["step"] == 28 and event.data["count"] == 1


def test_a_finding_within_the_cool_down_is_dropped():
    training = Training(max_skips=100, every=1, cool_down=10)
    training.guard.found(finding())
    training.run(1)
    training.guard.found(finding())
    training.run(30)
    assert training.guard.rollbacks == 1


def test_a_guard_in_a_model_says_where_to_keep_it():
    with pytest.raises(TypeError, match=r"state_dict\(\) in the checkpoint"):
        copy.deepcopy(gradkern.RollbackGuard(lambda: None))
