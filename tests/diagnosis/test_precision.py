"""Gradients that underflow under float16 autocast, on synthetic evidence and in a small run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradkern import GradClipper, GradMonitor
from gradkern.diagnosis import diagnose
from tests.support.runs import changed, flat_loss, healthy

EXPONENTS = np.arange(-40, 0)


def autocast(exponent, *, zero=(), run=None, float16=True, **fields):
    """Six layers with elements of one magnitude, some columns of which are zero."""
    run = flat_loss(healthy(rms=2.0**exponent)) if run is None else run
    counts = np.zeros((3, 12, len(EXPONENTS)), dtype=np.int64)
    counts[..., exponent == EXPONENTS] = 100
    if not float16:  # each power of two has half as many elements as the next one
        for below in range(1, 8):
            counts[..., exponent - below == EXPONENTS] = 100 // 2**below
    rms = run.rms.copy()
    counts[:, list(zero)] = 0
    rms[:, list(zero)] = 0
    graph = {"order": list(run.names), "float16": list(run.names) if float16 else []}
    fields = {"histogram": counts, "rms": rms, "facts": {**run.facts, "graph": graph}, **fields}
    return changed(run, histogram_steps=np.array([1, 2, 4]), histogram_exponents=EXPONENTS, **fields)


def kinds(evidence):
    return [finding.kind for finding in diagnose(evidence) if finding.is_alarm]


def test_few_bits_under_autocast_are_an_underflow_with_remedies():
    (finding, *_) = diagnose(autocast(-23))
    assert (finding.kind, finding.severity, finding.layers) == ("low_precision_underflow", "severe", ())
    assert [r.action for r in finding.remedies[:2]] == ["loss_scaling", "bfloat16"]


@pytest.mark.parametrize("options", [{"exponent": -12}, {"exponent": -23, "float16": False}])
def test_other_magnitudes_and_formats_are_fine(options):
    assert "low_precision_underflow" not in kinds(autocast(**options))


def test_elements_that_float16_does_not_have_show_a_scaled_loss():
    run = autocast(-23)
    counts = run.histogram.copy()
    counts[..., EXPONENTS == -27] = 5
    assert "low_precision_underflow" not in kinds(changed(run, histogram=counts))


def test_a_loss_that_falls_well_is_fine():
    assert kinds(autocast(-23, run=healthy(rms=2.0**-23))) == []


def test_zeros_behind_few_bits_are_an_underflow():
    assert kinds(autocast(-22, zero=range(8)))[0] == "low_precision_underflow"


@pytest.mark.parametrize(("ever", "found"), [(0.1, True), (1.0, False)])
def test_a_later_gradient_that_fills_a_few_elements(ever, found):
    """Most elements of the first layers were zero at all steps, and the others come from one large step."""
    run = autocast(-23)
    counts, reached = run.histogram.copy(), run.ever_nonzero.copy()
    counts[:, :8] = 0
    counts[:, :8, EXPONENTS == -8] = 3
    reached[:8] = ever
    assert ("low_precision_underflow" in kinds(changed(run, histogram=counts, ever_nonzero=reached))) == found


def test_zeros_behind_gradients_of_a_normal_size_are_dead_units():
    assert kinds(autocast(-8, zero=range(8)))[0] == "dead_units"


@pytest.mark.parametrize(("loss", "found"), [(1e-6, "low_precision_underflow"), (0.0, "no_gradient")])
def test_without_any_gradient_the_loss_tells(loss, found, graph):
    """Without the graph no element is left that would show float16. The outputs are without a gradient as
    well, so that no units are called inactive."""
    told = kinds(autocast(-8, zero=range(12), run=healthy(loss=loss)))
    assert told[0] == (found if graph else "no_gradient") and "dead_units" not in told


@pytest.mark.parametrize(("scale", "found"), [(1.0, True), (2.0**16, False)])
def test_a_run_under_autocast(tmp_path, scale, found):
    """A loss divided by a large number, without and with a scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    clipper = GradClipper(model, 1.0)
    x, y = torch.randn(32, 16), torch.randint(0, 4, (32,))
    with GradMonitor(model, optimizer, tmp_path) as monitor:
        for _ in range(25):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(x).float(), y) / 1e5
            (loss * scale).backward()
            for p in model.parameters():
                p.grad /= scale
            monitor.record(clipper.clip_(), loss=loss)
            optimizer.step()
            optimizer.zero_grad()
        history = monitor.history()
    assert sorted(history.facts["graph"]["float16"]) == sorted(history.names)
    headline = [f.kind for f in diagnose(history) if f.is_alarm][:1]
    assert (headline == ["low_precision_underflow"]) == found
