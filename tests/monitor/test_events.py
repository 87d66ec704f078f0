"""Skips, spikes and changed limits become events, from what clip_ returned."""

from __future__ import annotations

import json
import sqlite3

import pytest
import torch

import gradkern
from gradkern import GradClipper, GradMonitor
from gradkern.diagnosis import notice_of
from gradkern.history import format
from gradkern.monitor.events import series as event_series
from gradkern.policies import (
    AGC,
    AdaGC,
    AutoClip,
    Decision,
    GlobalNorm,
    PerLayerNorm,
    Schedule,
    SkipOutliers,
    Value,
    ZClip,
    custom,
)
from gradkern.sinks import Sink
from tests.support.loops import small_model


def run(folder, scales, clipper_of, before=lambda clipper, step: None, **record):
    """One recorded step for each factor on the gradients."""
    model = small_model()
    clipper = clipper_of(model)
    model(torch.ones(2, 6)).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    with GradMonitor(model, None, folder) as monitor:
        for step, scale in enumerate(scales, 1):
            for param, grad in zip(model.parameters(), grads):
                param.grad = grad * scale
            before(clipper, step)
            monitor.record(clipper.clip_(), **record)
        return monitor.history()


def told(history):
    return [(event.kind, event.step, event.data) for event in history.events]


def test_a_step_with_nan_is_a_skip_that_names_parameters(tmp_path):
    history = run(tmp_path, [1, float("nan"), 1], lambda m: GradClipper(m, 1.0, on_nonfinite="skip"))
    ((kind, step, data),) = told(history)
    assert (kind, step, data["reason"]) == ("skip", 2, "nonfinite")
    assert data["parameters"] == list(history.names[:8]) and history.skipped.tolist() == [False, True, False]


def test_skips_in_a_row_are_one_event(tmp_path):
    history = run(tmp_path, [1, *[float("inf")] * 500], lambda m: GradClipper(m, 1.0, on_nonfinite="skip"))
    ((kind, step, data),) = told(history)
    assert (kind, step, data["count"], data["last_step"]) == ("skip", 2, 500, 501)
    assert history.events[0].count == 500
    assert notice_of(step, kind, data).text.endswith("(500 times up to step 501)")
    database = sqlite3.connect(tmp_path / format.DATABASE)
    assert database.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_a_reader_sees_an_event_grow(tmp_path):
    model = small_model()
    clipper = GradClipper(model, 1.0, on_nonfinite="skip")
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.event("began")
        (model(torch.ones(2, 6)).sum() * float("nan")).backward()
        monitor.record(clipper.clip_())
        history = monitor.history()
        assert [event.kind for event in history.events] == ["began", "skip"]
        for _ in range(4):
            monitor.record(clipper.clip_())
        monitor.event("ended")
        monitor.flush()
        history.refresh()
        assert [event.kind for event in history.events] == ["began", "skip", "ended"]
        assert history.events[1].data["count"] == 5 and history.events[1].data["last_step"] == 5
        history.refresh()
        assert len(history.events) == 3


def test_skips_far_apart_are_events_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(event_series, "GAP", 3)
    bad = float("nan")
    scales = [1, bad, 1, 1, bad, 1, 1, 1, bad]
    history = run(tmp_path, scales, lambda m: GradClipper(m, 1.0, on_nonfinite="skip"))
    assert [(step, data.get("count", 1), data.get("last_step", step)) for _, step, data in told(history)] == [
        (2, 2, 5), (9, 1, 9)
    ]  # fmt: skip


def test_an_outlier_that_is_skipped_has_its_norm_and_limit(tmp_path):
    scales = [1 + 0.01 * (i % 5) for i in range(40)]
    history = run(tmp_path, [*scales, 50.0, 1.0], lambda m: GradClipper(m, policy=SkipOutliers(window=16)))
    skip, spike = told(history)
    assert skip[:2] == ("skip", 41) and skip[2].pop("reason") == "outlier"
    assert spike == ("spike", 41, skip[2])
    assert skip[2]["norm"] == pytest.approx(history.total_norm[40])
    assert skip[2]["limit"] == history.threshold[40]


def test_a_spike_that_zclip_clips(tmp_path):
    scales = [1 + 0.01 * (i % 5) for i in range(40)]
    history = run(tmp_path, [*scales, 50.0, 80.0, 1.0], lambda m: GradClipper(m, policy=ZClip(max_norm=1e4)))
    ((kind, step, data),) = told(history)
    assert (kind, step, data["count"]) == ("spike", 41, 2)
    assert data["norm"] == pytest.approx(history.total_norm[41]) and data["limit"] < data["norm"]


def test_what_max_norm_limits_is_no_spike(tmp_path):
    assert told(run(tmp_path, [1.0] * 40, lambda m: GradClipper(m, policy=ZClip(max_norm=1e-3)))) == []


STEADY = [1 + 0.01 * (i % 5) for i in range(40)]
OTHERS = {
    "GlobalNorm": lambda: GlobalNorm(1e-3),
    "PerLayerNorm": lambda: PerLayerNorm(1e-3),
    "Value": lambda: Value(1e-3),
    "AGC": lambda: AGC(1e-3),
    "AutoClip": lambda: AutoClip(),
    "AdaGC": lambda: AdaGC(warmup_steps=1000),  # in its warm-up
    "Schedule": lambda: Schedule(lambda step: 1e-3),
    "custom": lambda: custom(lambda stats: 0.5),
    "custom that skips": lambda: custom(lambda stats: Decision(1.0, stats.total_norm > 100)),
}
"""Policies without a notion of outliers, all of which clip or skip here."""


@pytest.mark.parametrize("policy", OTHERS)
def test_a_spike_that_another_policy_clips_or_skips(tmp_path, policy):
    history = run(tmp_path, [*STEADY, 50.0, 1.0, 5.0], lambda m: GradClipper(m, policy=OTHERS[policy]()))
    spikes = [(step, data) for kind, step, data in told(history) if kind == "spike"]
    assert [step for step, _ in spikes] == [41]
    assert spikes[0][1]["norm"] == pytest.approx(history.total_norm[40])
    assert spikes[0][1]["usual"] == pytest.approx(sorted(history.total_norm[:40])[20], rel=0.02)
    assert notice_of(41, "spike", spikes[0][1]).text.startswith("norm ")


def test_a_spike_that_nothing_clips_is_no_event(tmp_path):
    assert told(run(tmp_path, [*STEADY, 50.0], lambda m: GradClipper(m, float("inf")))) == []


def test_a_norm_that_rises_for_good_is_a_spike_at_first_only(tmp_path):
    history = run(tmp_path, [*STEADY, *[50.0] * 100], lambda m: GradClipper(m, 1e-3))
    ((kind, step, data),) = told(history)
    assert (kind, step, data["last_step"]) == ("spike", 41, 72)  # the median moves


@pytest.mark.parametrize("grouped", [False, True])
def test_a_single_gradient_that_adagc_clips(tmp_path, grouped):
    """The total norm hardly changes."""

    def clipper_of(model):
        if not grouped:
            return GradClipper(model, policy=AdaGC(warmup_steps=5))
        return GradClipper(model, groups={"a": ("0.*", None), "b": ("*", AdaGC(warmup_steps=5))})

    def before(clipper, step):
        if step == 30:
            clipper._plan.params[-1].grad.mul_(20.0)

    history = run(tmp_path, STEADY, clipper_of, before)
    ((kind, step, data),) = told(history)
    assert (kind, step, data["parameters"]) == ("spike", 30, [history.names[-1]])
    assert data["norm"] == pytest.approx(history.norm[29, -1])
    assert data["usual"] == pytest.approx(history.norm[28, -1], rel=0.05)
    assert data.get("group") == ("b" if grouped else None)
    assert notice_of(step, kind, data).text.endswith(f" in {history.names[-1]}")


SETTINGS = {
    "clip_value": (lambda: Value(1.0), 2.0),
    "clip_factor": (lambda: AGC(0.5), 0.25),
    "percentile": (lambda: AutoClip(90.0), 50.0),
    "z_thresh": (lambda: ZClip(), 3.0),
    "sigma": (lambda: SkipOutliers(), 5.0),
    "lambda_rel": (lambda: AdaGC(), 2.0),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_the_user_changes(tmp_path, setting):
    make, after = SETTINGS[setting]
    policy = make()
    before = getattr(policy, setting)

    def change(clipper, step):
        setattr(policy, setting, before if step < 3 else after)

    history = run(tmp_path, [1.0] * 4, lambda m: GradClipper(m, policy=policy), change)
    (told_of,) = told(history)
    assert told_of == ("threshold", 3, {"setting": setting, "before": before, "after": after})
    assert notice_of(3, "threshold", told_of[2]).text.startswith(f"{setting} ")


def test_a_schedule_that_jumps(tmp_path):
    def limit(step):
        return 1.0 + 0.01 * step if step < 10 else 0.5

    history = run(tmp_path, [1.0] * 20, lambda m: GradClipper(m, policy=Schedule(limit)))
    assert told(history) == [("threshold", 11, {"before": pytest.approx(1.09), "after": 0.5})]


def test_a_limit_that_the_user_changes(tmp_path):
    def change(clipper, step):
        clipper.max_norm = 1.0 if step < 3 else 0.5

    history = run(tmp_path, [1.0] * 4, lambda m: GradClipper(m, 1.0), change)
    assert told(history) == [("threshold", 3, {"before": 1.0, "after": 0.5})]


def test_events_of_groups_and_parts_say_where(tmp_path):
    scales = [1 + 0.01 * (i % 5) for i in range(40)]

    def clipper_of(model):
        return GradClipper(model, groups={"first": ("0.*", ZClip()), "rest": ("*", 1.0)})

    def change(clipper, step):
        clipper.policies["rest"].max_norm = 1.0 if step < 5 else 2.0

    history = run(tmp_path / "groups", [*scales, 50.0], clipper_of, change)
    threshold, spike, clipped = told(history)
    assert clipped[:2] == ("spike", 41) and clipped[2]["group"] == "rest"
    assert threshold == ("threshold", 5, {"group": "rest", "before": 1.0, "after": 2.0})
    assert spike[:2] == ("spike", 41) and spike[2]["group"] == "first"
    models = {"G": small_model(), "D": small_model(1)}
    with GradMonitor(models, None, tmp_path / "parts") as monitor:
        for name, model in models.items():
            (model(torch.ones(2, 6)).sum() * (float("nan") if name == "D" else 1.0)).backward()
            monitor.record(GradClipper(model, 1.0, on_nonfinite="skip").clip_(), part=name)
        (skip,) = told(monitor.history())
    assert skip[2]["part"] == "D" and skip[2]["parameters"][0] == "D.0.weight"


def test_a_scaler_that_skips_is_named(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    clipper = GradClipper(model, 1.0)
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        scaler.scale(model(torch.full((2, 6), float("inf"))).sum()).backward()
        monitor.record(clipper.clip_(scaler=scaler, optimizer=optimizer))
        ((kind, _, data),) = told(monitor.history())
    assert (kind, data["reason"]) == ("skip", "scaler") and data["parameters"]


def test_limits_of_torchs_function_are_followed(tmp_path):
    model = small_model()
    with GradMonitor(model, None, tmp_path) as monitor, gradkern.patched_torch(monitor):
        for step in range(4):
            model(torch.ones(2, 6)).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0 if step < 2 else 0.5)
            monitor.record()
        assert told(monitor.history()) == [("threshold", 3, {"before": 1.0, "after": 0.5})]


def test_no_limit_changes_where_a_group_has_nan(tmp_path):
    def clipper_of(model):
        return GradClipper(model, groups={"all": ("*", 1.0)}, on_nonfinite="skip")

    assert [kind for kind, *_ in told(run(tmp_path, [1.0, float("nan"), 1.0], clipper_of))] == ["skip"]


def test_sinks_get_an_event_at_the_step_of_its_extension(tmp_path):
    class Kept(Sink):
        def __init__(self):
            super().__init__()
            self.events = []

        def log(self, step, time, values):
            pass

        def event(self, step, time, kind, data):
            self.events.append((step, kind, data.get("count", 1)))

    sink, model = Kept(), small_model()
    clipper = GradClipper(model, 1.0, on_nonfinite="skip")
    (model(torch.ones(2, 6)).sum() * float("nan")).backward()
    with GradMonitor(model, None, tmp_path, sinks=[sink]) as monitor:
        for _ in range(3):
            monitor.record(clipper.clip_())
    assert sink.events == [(1, "skip", 1), (2, "skip", 2), (3, "skip", 3)]


def test_events_are_json_without_nan(tmp_path):
    run(tmp_path, [float("nan")], lambda m: GradClipper(m, 1.0, on_nonfinite="skip")).close()
    database = sqlite3.connect(tmp_path / format.DATABASE)
    (text,) = database.execute("SELECT data FROM events").fetchone()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["reason"] == "nonfinite"
