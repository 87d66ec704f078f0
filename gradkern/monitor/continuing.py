"""Continuing a run that exists: a check of its model, and a warning if this seems to be a new training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradkern._util.names import distinct
from gradkern._util.warning import warn
from gradkern.history.facade import History
from gradkern.history.format import HistoryError
from gradkern.history.layout import Layout
from gradkern.monitor.facts import MOST_MODULES, modules_of
from gradkern.monitor.models.layouts import Plan, numbered

Shape = tuple[int, ...]


class Continuation:
    """Warns once if a training that was not resumed is recorded to an existing run.

    Args:
        folder, last: the folder of the run, and its last step; None for a new run.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self._folder, self._last = folder, last
        self._told = False

    def resumed(self, step: int) -> None:
        """`load_state_dict` has given the position in the run. Step 0 may be that of a new training."""
        self._told = True
        if step:
            self._last = None

    def begin(self, step: int, told: bool) -> None:
        """A step is about to be recorded, before it replaces any.

        Args:
            told: whether its number was given as ``step=``.

        Warns:
            GradkernWarning: the run existed, and nothing said where to continue it, or this is its first step
                again, so that none of the earlier steps remains.
        """
        if self._last is None:
            return
        last, self._last = self._last, None
        if not (told or self._told):
            self._warn(
                last,
                f"appended to it from step {step} on",
                "To resume one, call GradMonitor.load_state_dict with what state_dict returned, or pass "
                "step= to record",
            )
        elif step <= self._first():
            self._warn(
                last,
                f"recorded from step {step} on, which replaces all of them",
                "The earlier steps stay in the file: History.open(run_dir, superseded=True)",
            )

    def _first(self) -> int:
        with History.open(self._folder) as history:
            return int(history.steps[0]) if len(history) else -1

    def _warn(self, last: int, what: str, more: str) -> None:
        warn(
            f"[GradMonitor.record] run_dir {str(self._folder)!r}: the run has steps up to {last} of an "
            f"earlier training, and this one is {what}. Use a new run_dir for a new training. {more}"
        )


def check_model(history: History, plan: Plan, modules: Mapping[str, torch.nn.Module]) -> None:
    """Check that a model is the one that was recorded.

    It may have parameters that were not recorded, if its modules are the same: a clipper may leave some out.
    Parameters without a shape (lazy ones, and those that ZeRO-3 has freed) are not compared.

    Args:
        history: the run.
        plan, modules: the model's parameters, and the models by name as in `modules_of`.

    Raises:
        HistoryError: it has another parameter, or one of another shape.
    """
    difference = next(_differences(history, plan, modules), None) if len(history) else None
    if difference is not None:
        raise HistoryError(
            f"[GradMonitor] run_dir {str(history.path.parent)!r}: the run is of another model: {difference}. "
            "Use a new run_dir for this model, or move the folder away"
        )


def _differences(history: History, plan: Plan, modules: Mapping[str, torch.nn.Module]) -> Iterator[str]:
    model = dict(zip(distinct(plan.names), map(_shape_of, plan.params)))
    last = _shapes(history.last_layout)
    if numbered(tuple(model)) and not numbered(tuple(last)):
        return  # built without names, which the clipper gave
    recorded: dict[str, set[Shape | None]] = {}
    for layout in history.layouts.values():
        for name, shape in _shapes(layout).items():
            recorded.setdefault(name, set()).add(shape)
    known = history.facts.get("modules") or {}
    complete = isinstance(known, dict) and 0 < len(known) < MOST_MODULES
    new = tuple(f"{name}." for name in modules_of(modules) if name not in known) if complete else ()
    for name, shape in model.items():
        seen = recorded.get(name)
        if seen is None:
            if name.startswith(new):
                yield f"this model has {name}, the run does not"
        elif shape is not None and None not in seen and shape not in seen:
            yield f"{name} has shape {shape} here and {last.get(name) or seen.pop()} in the run"
    yield from (
        f"this model has no {name}" for name, shape in last.items() if shape is not None and name not in model
    )


def _shape_of(param: Tensor) -> Shape | None:
    if torch.nn.parameter.is_lazy(param) or not param.numel():
        return None
    return tuple(param.shape)


def _shapes(layout: Layout) -> dict[str, Shape | None]:
    """The shapes of a layout's parameters; None where the row is not of a parameter of the model."""
    found: dict[str, Shape | None] = {}
    for name, details in layout.entries():
        shape: Any = details.get("shape")
        good = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)
        found[name] = tuple(shape) if good else None
    return found
