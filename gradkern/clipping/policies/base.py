"""`Policy`: what every policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.native import NOTHING, NativePolicy
from gradkern.params.stats import GradStats


class Policy(ABC):
    """Decides what is done with the gradients, from their statistics.

    `decide` runs once a step, on the gradients' device and without a synchronisation, so that it can be part
    of a CUDA graph. What a policy remembers from step to step lies in tensors and goes through `state_dict`.
    Over ranks every rank is given the same totals and rows, and so decides the same.
    """

    may_skip: bool = False
    """Whether a decision can be to skip the step."""
    needs_rows: bool = False
    """Whether it decides by the norms of rows: they are then measured before rounding, too."""

    @abstractmethod
    def decide(self, stats: GradStats) -> Decision:
        """
        Args:
            stats: the statistics of this step, before clipping. Over a named group: of its parameters alone.
        """

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        """This step's `decide` for gradients on the CPU, as the extension takes it; None where it has no such
        policy.

        Args:
            names: of the rows that are decided on; the same object from step to step while they are the same.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the policy remembers; tensors and numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is another policy's.
        """
        if state:
            name = type(self).__name__
            raise ValueError(
                f"[{name}.load_state_dict] state: expected {{}}, because {name} remembers nothing; got "
                f"{sorted(state)}"
            )


class ElementPolicy(Policy):
    """A policy that changes gradients element by element, by `apply_`.

    In a step that is skipped on a GPU they are changed all the same: nothing uses them.
    """

    def decide(self, stats: GradStats) -> Decision:
        return Decision(torch.ones_like(stats.deciding()))

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        return NOTHING

    def check(self, operation: str, params: Sequence[Tensor], names: Sequence[str]) -> None:
        """Called before any gradient of the clipper is changed.

        Raises:
            TypeError, ValueError: `apply_` does not support a gradient.
        """
        return

    @abstractmethod
    def apply_(
        self,
        operation: str,
        params: Sequence[Tensor],
        shards: Sequence[Tensor | None] | None,
        names: Sequence[str],
    ) -> Tensor | None:
        """Change the gradients in place.

        Args:
            operation, names: for messages.
            params: the parameters; entries are there once.
            shards: what this rank holds of each gradient, or None; None for the gradients themselves.

        Returns:
            The ratio of each gradient's L2 norms after and before, float64 [N], the same on all ranks that
            share it; None if it is not known.
        """
