"""`StepPolicy`: the base class of policies with state."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from gradkern._util.warning import warn
from gradkern.clipping.policies.base import Policy
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.native import NativePolicy
from gradkern.kernels.policy_steps import policy_step
from gradkern.params.stats import GradStats

_CPU = torch.device("cpu")


class StepPolicy(Policy):
    """Base class of policies that decide and update their state in one call, `kernels.policy_steps`.

    The state is a float64 vector on the gradients' device, which norms that are not finite do not enter. It
    is allocated in the first step on a device, which therefore has to run before a CUDA graph is captured.
    """

    kind: str
    _state: Tensor | None = None
    _is_loaded = False
    """Whether the state was loaded and not used yet."""

    @abstractmethod
    def constants(self) -> tuple[float, ...]:
        """The constants of `kind`, in the order of csrc/core/policies.h."""

    @abstractmethod
    def state_size(self, rows: int) -> int:
        """The length of the state for a number of rows."""

    def decide(self, stats: GradStats) -> Decision:
        total = stats.deciding()
        result = policy_step(self.kind, total, self._state_of(1, total.device), self.constants())
        factor, _, threshold = result.unbind()
        return Decision(factor, threshold=threshold)

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        return NativePolicy(self.kind, self.constants(), self._state_of(len(names), _CPU))

    def _state_of(self, rows: int, device: torch.device) -> Tensor:
        state = self._state
        size = self.state_size(rows)
        if state is not None and state.numel() == size and state.device == device:
            return state
        self.check_rows(rows)
        if state is not None and state.numel() != size:
            warn(
                f"[{type(self).__name__}] the state of the policy no longer fits, because the parameters of "
                "the clipper or the settings of the policy have changed. It is reset"
            )
        if state is None or state.numel() != size:
            state = torch.zeros(size, dtype=torch.float64, device=device)
        self._state, self._is_loaded = state.to(device), False
        return self._state

    def check_rows(self, rows: int) -> None:
        """Check that a loaded state fits the number of gradients.

        Raises:
            ValueError: it does not.
        """
        if self._is_loaded and self._state is not None and self._state.numel() != self.state_size(rows):
            raise ValueError(
                f"[{type(self).__name__}.load_state_dict] state: expected {self.state_size(rows)} numbers "
                f"for {rows} gradients, got {self._state.numel()}; it was saved with other parameters"
            )

    def state_dict(self) -> dict[str, Any]:
        return {} if self._state is None else {"kind": self.kind, "state": self._state.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            self._state, self._is_loaded = None, False
            return
        name = type(self).__name__
        given = state.get("state")
        if state.get("kind") != self.kind or not isinstance(given, Tensor) or given.ndim != 1:
            raise ValueError(
                f"[{name}.load_state_dict] state: expected one that {name}.state_dict() returned, got one of "
                f"{state.get('kind', sorted(state))!r}"
            )
        expected = self._fixed_size()
        if expected is not None and len(given) != expected:
            raise ValueError(
                f"[{name}.load_state_dict] state: expected {expected} numbers, got {len(given)}; it was "
                "saved with another window"
            )
        if not bool((given >= 0).all()):  # counts, norms and squares; NaN never enters
            raise ValueError(
                f"[{name}.load_state_dict] state: expected numbers of at least 0, got {given.min().item()}; "
                "the checkpoint is damaged"
            )
        self._state, self._is_loaded = given.detach().to(torch.float64).clone(), True

    def _fixed_size(self) -> int | None:
        """The length of the state, or None if it depends on the rows."""
        return self.state_size(1)
