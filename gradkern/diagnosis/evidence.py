"""`RunEvidence`: the data that rules use, as plain arrays. Built from a History or by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RunEvidence"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class RunEvidence:
    """A run in T recorded steps, N parameters, R rows with all parameters, U steps with
    the weights, V histograms. NaN where a number was not recorded.

    Short runs have ``R == T``; of long ones some windows of rows are taken (`load.read_evidence`).
    """

    names: tuple[str, ...]
    """[N] parameters, in the order in which the model lists them."""
    numel: NDArray[np.int64]
    """[N]"""
    steps: NDArray[np.int64]
    """[T]"""
    loss: Floats
    """[T] NaN if it was NaN or not given."""
    has_loss: NDArray[np.bool_]
    """[T]"""
    total_norm: Floats
    """[T]"""
    clip_coef: Floats
    """[T] NaN without clipping."""
    threshold: Floats
    """[T] max_norm; NaN if there was none or it is unknown."""
    skipped: NDArray[np.bool_]
    """[T]"""
    lr: Floats
    """[T]"""
    loss_scale: Floats
    """[T] NaN without loss scaling."""
    rows: NDArray[np.int64]
    """[R] positions in `steps`, ascending."""
    rms: Floats
    """[R, N] NaN where there was no gradient, or it held NaN."""
    max_abs: Floats
    """[R, N]"""
    has_grad: NDArray[np.bool_]
    """[R, N]"""
    nonfinite: NDArray[np.int64]
    """[R, N] how many elements were inf or NaN."""
    zeros: NDArray[np.int64]
    """[R, N] how many elements were zero, -1 where not counted."""
    update_steps: NDArray[np.int64]
    """[U] steps with weight norms and update ratios."""
    weight_norm: Floats
    """[U, N]"""
    update_ratio: Floats
    """[U, N]"""
    histogram_steps: NDArray[np.int64]
    """[V]"""
    histogram: NDArray[np.int64]
    """[V, N, B] sampled elements by magnitude."""
    histogram_exponents: NDArray[np.int64]
    """[B] bin b holds ``[2**e, 2**(e+1))``."""
    ever_nonzero: Floats
    """[N] fraction of the sampled elements whose gradient was ever non-zero."""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Details of each parameter by name: shape, dtype, kind (of its module), trainable, group."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`History.facts`: modules, graph, optimizers, policy, …; empty if unknown."""
    over_time: Mapping[str, Floats] = field(default_factory=dict)
    """[T, P] gradient norms at the input of a recurrent module by position in the sequence, where
    `GradientOverTime` recorded them; NaN at other steps."""
    watches_steps: bool = False
    """Whether the monitor compares the weights before and after each optimizer step, so that `update_steps`
    is empty only if no step was taken."""
