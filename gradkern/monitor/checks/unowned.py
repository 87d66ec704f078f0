"""A warning about parameters that are in no optimizer and never change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradkern.monitor.checks.device_warning import DeviceWarning
from gradkern.monitor.models.layouts import Plan
from gradkern.monitor.sample import elements

#: Checks without a change before the warning. Optimizers unknown to the monitor may step less often.
_CHECKS = 3
_ELEMENTS = 64


class UnownedParameters:
    """Watches trainable parameters with a gradient that are in none of the optimizers.

    Another optimizer may have them. Therefore their versions, and some elements of one of them, are compared
    at each check. No synchronisation, and no work if the optimizers have all parameters.
    """

    def __init__(self, plan: Plan, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._plan, self._optimizers = plan, optimizers
        self._warning = DeviceWarning()
        self._checks = 0
        self._versions: dict[int, int] = {}
        """By row, the version at the first check; only rows that have not changed since."""
        self._row, self._before = 0, torch.empty(0, device="cpu")
        """Some elements of one of them."""

    @torch.no_grad()
    def check(self) -> None:
        """Compare with earlier checks. Called after a step with periodic statistics."""
        if self._checks == _CHECKS or not self._optimizers:
            self._warning.poll()
            return
        versions = self._candidates()
        self._versions = {
            row: version
            for row, version in (self._versions or versions).items()
            if versions.get(row) == version
        }
        if not self._versions:
            self._checks = 0
            return
        if self._checks == 0:
            self._row = next(iter(self._versions))
            self._before = _some(self._plan.params[self._row])
        self._checks += 1
        if self._checks == _CHECKS:
            self._judge()

    def _candidates(self) -> dict[int, int]:
        owned = {id(p) for o in self._optimizers for group in o.param_groups for p in group["params"]}
        return {
            row: p._version
            for row, p in enumerate(self._plan.params)
            if id(p) not in owned and p.requires_grad and p.grad is not None and not p.is_inference()
        }

    def _judge(self) -> None:
        now, before = _some(self._plan.params[self._row]), self._before
        if self._row not in self._versions or not len(now) or len(now) != len(before):
            self._checks, self._versions = 0, {}
            return
        names = [self._plan.names[row] for row in self._versions]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        self._warning.ask(
            (now == before).all(),
            lambda _: (
                f"[GradMonitor] {shown}: trainable and with gradients, but in no optimizer that the monitor "
                "knows, and unchanged so far. If the model's parameters were replaced after the optimizer "
                "was built, build the optimizer again. If they should not be trained, set requires_grad to "
                "False"
            ),
        )
        self._warning.poll()


def _some(param: Tensor) -> Tensor:
    """A copy of a few elements; empty if there are no numbers in plain memory."""
    flat = elements(param)
    if flat is None:
        return torch.empty(0, device="cpu")
    return flat[:: max(1, len(flat) // _ELEMENTS)][:_ELEMENTS].clone()
