"""The caller's own numbers, amendments, events, and steps that were clipped in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradkern
from gradkern import GradClipper, GradMonitor
from tests.support.loops import small_model


def with_gradients():
    model = small_model()
    model(torch.ones(2, 6)).sum().backward()
    return model


def test_extras_are_curves_and_copied_when_given(tmp_path):
    model = with_gradients()
    load = torch.tensor([1.0, 2.0])
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.record(extra={"attn/max_logit": torch.tensor(3.0), "router/load": load})
        load.zero_()
        monitor.record()
        monitor.record(extra={"attn/max_logit": 5})
        extra = monitor.history().extra
    np.testing.assert_array_equal(extra["attn/max_logit"], [3, np.nan, 5])
    np.testing.assert_array_equal(extra["router/load/1"], [2, np.nan, np.nan])
    assert set(extra) == {"attn/max_logit", "router/load/0", "router/load/1"}


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (3, TypeError, "expected a dict"),
        ({1: 2}, TypeError, "names must be non-empty strings"),
        ({"a": "x"}, TypeError, r"extra\['a'\]: expected a number"),
        ({"a": torch.ones(65)}, ValueError, "1 to 64 elements"),
        ({"a": torch.ones(3).to_sparse()}, TypeError, r"extra\['a'\]: expected a dense tensor"),
        ({"loss": 1.0}, ValueError, "give the loss of the step as loss="),
    ],
)
def test_extras_that_are_none_record_nothing(tmp_path, extra, error, message):
    with GradMonitor(with_gradients(), None, tmp_path) as monitor:
        with pytest.raises(error, match=message):
            monitor.record(extra=extra)
        assert monitor.step == 0 and len(monitor.history()) == 0


def test_the_loss_of_a_part_is_no_extra(tmp_path):
    models = {"G": with_gradients(), "D": with_gradients()}
    with GradMonitor(models, None, tmp_path) as monitor:
        with pytest.raises(ValueError, match=r"record\] extra: give the loss of a part as part='G'"):
            monitor.record(part="D", extra={"loss/G": 1.0})
        monitor.record(part="G", loss=0.5, extra={"loss/other": 2.0})
        with pytest.raises(ValueError, match=r"amend\] extra: give the loss of a part as part='D'"):
            monitor.amend(1, extra={"loss/D": 1.0})
        with pytest.raises(TypeError, match=r"amend\] loss: expected one real number, got 'low'"):
            monitor.amend(1, part="G", loss="low")
        monitor.record(part="D", loss=0.25)
        extra = monitor.history().extra
    assert (extra["loss/G"][0], extra["loss/D"][0], extra["loss/other"][0]) == (0.5, 0.25, 2.0)


def test_what_is_known_later_amends_a_step(tmp_path):
    with GradMonitor(with_gradients(), None, tmp_path, every=2) as monitor:
        for step in range(1, 5):
            monitor.record(loss=float(step))
        monitor.amend(2, loss=torch.tensor(0.5), extra={"eval": 7})
        monitor.amend(3, loss=9.0)  # was left out
        with pytest.raises(ValueError, match=r"\[GradMonitor.amend\] step: "):
            monitor.amend(-1, loss=1.0)
        history = monitor.history()
    assert history.steps.tolist() == [2, 4] and history.loss.tolist() == [0.5, 4.0]
    np.testing.assert_array_equal(history.extra["eval"], [7, np.nan])
    with pytest.raises(RuntimeError, match=r"\[GradMonitor.amend\] cannot record, because"):
        monitor.amend(2, loss=1.0)


def test_events_are_kept_as_json(tmp_path):
    with GradMonitor(with_gradients(), None, tmp_path) as monitor:
        monitor.record()
        monitor.event("rollback", {"to": 0, "norm": float("inf")})
        with pytest.raises(TypeError):
            monitor.event("rollback", {"to": object()})
        (event,) = monitor.history().events
    assert (event.step, event.kind, event.data) == (1, "rollback", {"to": 0, "norm": None})


def test_a_step_that_was_clipped_in_parts_is_one_row(tmp_path):
    model = with_gradients()
    named = list(model.named_parameters())
    whole = gradkern.measure(model)
    first, second = GradClipper(named[:3], 1e-3), GradClipper(named[3:], 1e9)
    with GradMonitor(model, None, tmp_path) as monitor:
        parts = [first.clip_(), second.clip_()]
        with pytest.raises(ValueError, match="is in two of the GradStats"):
            monitor.record([parts[0], parts[0]])
        monitor.record(parts)
        history = monitor.history()
    assert history.names == whole.names and len(history) == 1
    np.testing.assert_allclose(history.norm[0], whole.norm, rtol=1e-6)
    np.testing.assert_allclose(history.total_norm[0], whole.total_norm, rtol=1e-6)
    assert (history.factor[0, :3] < 1).all() and (history.factor[0, 3:] == 1).all()


def test_the_threshold_and_the_policy_are_recorded(tmp_path):
    model = with_gradients()
    clipper = GradClipper(model, 2.5)
    with GradMonitor(model, None, tmp_path) as monitor:
        monitor.record(clipper.clip_())
        clipper.max_norm = float("inf")
        monitor.record(clipper.clip_())
        history = monitor.history()
    np.testing.assert_array_equal(history.threshold, [2.5, np.nan])
    assert history.facts["policy"]["class"] == "GlobalNorm"


def test_several_optimizers_are_one_run(tmp_path):
    model = with_gradients()
    params = list(model.parameters())
    first, second = torch.optim.SGD(params[:4], lr=0.5), torch.optim.AdamW(params[4:], lr=0.25)
    with GradMonitor(model, {"a": first, "b": second}, tmp_path, update_every=1) as monitor:
        monitor.record()
        first.step()
        second.step()
        history = monitor.history()
    assert history.lr_groups.tolist() == [[0.5, 0.25]] and history.meta["optimizer"] == "SGD, AdamW"
    assert np.isfinite(history.update_ratio[0, :3]).all() and history.weight_norm.shape == (1, len(params))
    assert [entry["name"] for entry in history.facts["optimizers"]] == ["a", "b"]
    assert history.params["4.bias"]["group"] == 1
    with pytest.raises(TypeError, match=r"\[GradMonitor\] optimizer: expected a torch.optim.Optimizer"):
        GradMonitor(model, [first, 3], tmp_path / "b")


def test_a_step_clipped_in_pieces_keeps_the_pieces_groups_and_policies(tmp_path):
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    both = torch.nn.ModuleList([first, second])
    for p in both.parameters():
        p.grad = torch.ones_like(p)
    pieces = [
        gradkern.GradClipper(first, groups={"w": ("weight", 1.0), "b": ("bias", None)}).clip_(),
        gradkern.GradClipper(second, 0.5).clip_(),
    ]
    with gradkern.GradMonitor(both, None, tmp_path) as monitor:
        monitor.record(pieces)
        history = monitor.history()
    assert set(history.groups) == {"0/w", "0/b", "1"}
    assert history.groups["1"].threshold.tolist() == [0.5]
