"""sklearn.datasets, imported on first use, because it takes seconds."""

from __future__ import annotations

from typing import Any

__all__ = ["sklearn_datasets"]


def sklearn_datasets() -> Any:
    from sklearn import datasets

    return datasets
