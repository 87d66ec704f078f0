"""`on_finding="raise"` over several ranks: all of them raise, where all of them ask."""

from __future__ import annotations

import functools
import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gradkern import DiagnosisError, GradkernWarning, GradMonitor


def sick_training(all_ranks: bool) -> tuple[int, list[str], list[str], bool]:
    """Twelve layers of sigmoids, and two calls. Returns the recorded steps, what was raised and told, and
    whether this is rank 0."""
    torch.manual_seed(0)
    hidden = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.Sigmoid())]
    model = nn.Sequential(*hidden, nn.Linear(16, 2))
    inputs = torch.randn(128, 16)
    raised: list[str] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", GradkernWarning)
        with GradMonitor(model, None, folder, on_finding="raise", all_ranks=all_ranks) as monitor:
            for _ in range(60):
                model.zero_grad()
                nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
                monitor.record()
                monitor.flush()
            steps = monitor.step
            for _ in range(2):
                try:
                    monitor.raise_if_severe()
                except DiagnosisError as error:
                    raised.append(error.finding.kind)
    return (
        steps,
        raised,
        [str(w.message) for w in told if "vanishing gradient" in str(w.message)],
        dist.get_rank() == 0,
    )


def test_all_ranks_raise_the_finding_of_the_one_that_records(ranks):
    for steps, raised, told, records in ranks(2)(functools.partial(sick_training, False)):
        assert steps == 60  # record() has not raised
        assert raised == ["vanishing_gradient"]
        assert len(told) == (1 if records else 0)


def test_ranks_that_all_record(ranks):
    for steps, raised, told, _ in ranks(2)(functools.partial(sick_training, True)):
        assert (steps, raised, len(told)) == (60, ["vanishing_gradient"], 1)


def test_a_single_rank_may_call_it_too(tmp_path):
    with GradMonitor(nn.Linear(2, 1), None, tmp_path, on_finding="raise") as monitor:
        monitor.raise_if_severe()
        assert monitor.step == 0
    with pytest.raises(RuntimeError, match=r"\[GradMonitor.raise_if_severe\] .* closed"):
        monitor.raise_if_severe()
