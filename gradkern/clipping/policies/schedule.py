"""`Schedule`: limit the total norm by a function of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradkern.clipping.policies.base import Policy
from gradkern.clipping.policies.checks import whole
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.global_norm import GlobalNorm
from gradkern.clipping.policies.native import NativePolicy
from gradkern.params.arguments import as_limit
from gradkern.params.stats import GradStats


class Schedule(Policy):
    """Clip by the global norm, to a limit that changes from step to step.

    Args:
        max_norm: a function that takes the step, counted from 0, and returns the limit.

    Raises:
        TypeError: `max_norm` is not callable.
        TypeError, ValueError: in `GradClipper.clip_`, if it does not return a number of at least 0.

    Examples:
        >>> policy = Schedule(lambda step: 10.0 if step < 1000 else 1.0)
        >>> policy = Schedule.warmup(0.1, 1.0, steps=2000)

    Notes:
        Steps are calls of `clip_`, counted on the host. A captured CUDA graph therefore keeps the limit that
        it was captured with.
    """

    def __init__(self, max_norm: Callable[[int], float]) -> None:
        if not callable(max_norm):
            raise TypeError(
                f"[Schedule] max_norm: expected a function of the step, got {type(max_norm).__name__}"
            )
        self._limit = max_norm
        # Changed in place: what describes a policy is made anew when an attribute changes.
        self._step = [0]
        self._checked: list[NativePolicy] = []
        self._global = GlobalNorm()

    @classmethod
    def warmup(cls, start: float, end: float, steps: int) -> Schedule:
        """A limit that goes linearly from `start` to `end` over `steps` steps and stays there.

        Raises:
            TypeError, ValueError: a limit is not a number of at least 0, or `steps` is below 1.
        """
        first, last = as_limit("Schedule", "start", start), as_limit("Schedule", "end", end)
        count = whole("Schedule", "steps", steps, 1)
        return cls(lambda step: first + (last - first) * min(1.0, step / count))

    def decide(self, stats: GradStats) -> Decision:
        self._global.max_norm = self._checked_limit(self._limit(self._step[0]))
        decision = self._global.decide(stats)
        self._next()
        return decision

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        # A limit that stays the same is checked once: between backward and the optimizer's step no code is
        # in the caches, so that each function that is called costs microseconds.
        limit = self._limit(self._step[0])
        if not self._checked or type(limit) is not float or limit != self._checked[0].constants[0]:
            self._checked[:] = [
                NativePolicy("global_norm", (self._checked_limit(limit),), decided=self._next)
            ]
        return self._checked[0]

    def _next(self) -> None:
        self._step[0] += 1

    @staticmethod
    def _checked_limit(limit: float) -> float:
        number: float = as_limit("Schedule", "max_norm", limit)
        return number

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step[0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"step"}:
            raise ValueError(f"[Schedule.load_state_dict] state: expected {{'step': …}}, got {sorted(state)}")
        self._step[0] = whole("Schedule.load_state_dict", "step", state["step"], 0)
