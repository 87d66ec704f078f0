"""Small recorded runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import record


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """A function that records a run and returns its folder."""

    def make(**options: object) -> Path:
        folder = tmp_path / str(options.pop("name", "run"))
        record(folder, **options)
        return folder

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
