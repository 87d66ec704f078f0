"""Which gradients to time: a case's, or those of a model that the user names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from gradkern.bench.cases import Case, Shape

#: Shape and dtype of every gradient.
Layout = Sequence[tuple[Shape, torch.dtype]]


class LayoutError(Exception):
    """No gradients can be made of what was asked for; the message says why."""


def case_layout(case: Case, dtype: torch.dtype) -> Layout:
    """The gradients of a case, all of one dtype."""
    return [(shape, dtype) for shape in case.shapes()]


def model_layout(name: str, dtype: torch.dtype | None = None) -> Layout:
    """The gradients of a model.

    Args:
        name: "module:function"; the function takes nothing and returns an nn.Module, on any device. The
            module is looked for in the current folder too.
        dtype: of all gradients; default: each parameter's own.
    """
    model = _function(name)()
    if not isinstance(model, nn.Module):
        raise LayoutError(f"{name}: expected an nn.Module to be returned, got {type(model).__name__}")
    layout = [(tuple(p.shape), dtype or p.dtype) for p in model.parameters() if p.requires_grad]
    if not layout:
        raise LayoutError(f"{name}: no parameter of the model requires a gradient")
    return layout


def _function(name: str) -> Callable[[], object]:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise LayoutError(f"expected MODULE:FUNCTION, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise LayoutError(f"{name}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise LayoutError(f"{name}: {module_name} has no function {attribute!r}")
    return function
