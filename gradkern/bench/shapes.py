"""The gradients to time: those of a case, or of a model that the user names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

import torch
from torch import nn

from gradkern.bench.cases import Case, Shape

DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}

#: Shape and dtype of every gradient.
Shapes = Sequence[tuple[Shape, torch.dtype]]


class ShapesError(Exception):
    """The gradients cannot be made. The message says why."""


def case_shapes(case: Case, dtype: torch.dtype) -> Shapes:
    """The gradients of a case, all of one dtype."""
    return [(shape, dtype) for shape in case.shapes()]


def model_shapes(name: str, dtype: torch.dtype | None = None) -> Shapes:
    """The gradients of a model.

    Args:
        name: "module:function"; the function takes nothing and returns an nn.Module, on any device. The
            module is looked for in the current folder too.
        dtype: of all gradients; default: each parameter's own.
    """
    function = _function(name)
    try:
        model = function()
    except Exception as error:
        raise ShapesError(f"{name}() raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ShapesError(f"{name}: expected an nn.Module to be returned, got {type(model).__name__}")
    lazy = next((n for n, p in model.named_parameters() if nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise ShapesError(
            f"{name}: expected parameters with a shape, '{lazy}' has none before the first forward"
        )
    shapes = [(tuple(p.shape), dtype or p.dtype) for p in model.parameters() if p.requires_grad]
    if not shapes:
        raise ShapesError(f"{name}: no parameter of the model requires a gradient")
    other = next((kind for _, kind in shapes if kind not in DTYPES.values()), None)
    if other is not None:
        raise ShapesError(
            f"{name}: expected parameters of {', '.join(DTYPES)}, got {other}; --dtype sets one"
        )
    return shapes


def _function(name: str) -> Callable[[], object]:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ShapesError(f"expected MODULE:FUNCTION, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ShapesError(f"{name}: {error}") from error
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise ShapesError(f"{name}: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ShapesError(f"{name}: {module_name} has no function {attribute!r}")
    return function
