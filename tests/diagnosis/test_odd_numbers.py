"""Runs with zeros, infinities and NaN in a column: a diagnosis without an error or a warning of NumPy."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from gradkern.diagnosis import diagnose
from gradkern.diagnosis.case import Case
from gradkern.diagnosis.optimizer import shrinks_by_steps
from tests.support.runs import healthy

COLUMNS = ("loss", "total_norm", "lr", "rms", "max_abs", "weight_norm", "update_ratio")


@pytest.mark.parametrize("part", [slice(None), slice(None, 3), slice(-3, None)])
@pytest.mark.parametrize("value", [0.0, np.inf, np.nan, -1.0])
@pytest.mark.parametrize("column", COLUMNS)
def test_any_column_may_be_odd(column, value, part):
    run = healthy()
    odd = getattr(run, column).copy()
    odd[part] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diagnose(dataclasses.replace(run, **{column: odd}))
    assert all(finding.why for finding in found)


def test_weights_that_stand_still_do_not_shrink_by_steps():
    run = healthy()
    still = dataclasses.replace(run, update_ratio=np.zeros_like(run.update_ratio))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not shrinks_by_steps(Case(still))
