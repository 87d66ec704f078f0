"""`Policy` and `ElementPolicy`: the base classes of policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradkern.clipping.policies.checks import Check
from gradkern.clipping.policies.decision import Decision
from gradkern.clipping.policies.native import NativePolicy
from gradkern.params.stats import GradStats


class Policy(ABC):
    """Base class of policies: decides from statistics how gradients are clipped.

    `decide` runs once per step, on the gradients' device. It should not synchronise, and then it can be
    captured in a CUDA graph. State that is kept from step to step belongs in tensors and in `state_dict`. All
    ranks receive the same totals and the same rows of sharded parameters, so they reach the same decision.
    """

    may_skip: bool = False
    """Whether the policy can decide to skip a step. If one that also `needs_rows` skips on one rank of
    `process_group` or `pp_group`, whose rows differ, all of them skip."""
    needs_rows: bool = False
    """Whether the policy uses the norms of single rows. They are then also kept in float64."""
    one_factor: bool = True
    """Whether the policy can return one factor for all gradients, as `fold` requires."""
    _checks: ClassVar[Mapping[str, Check]] = MappingProxyType({})
    """The checks of settings by name. Every assignment passes through them, so that a step needs none."""

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._checks.get(name)
        super().__setattr__(name, value if check is None else check(type(self).__name__, name, value))

    @abstractmethod
    def decide(self, stats: GradStats) -> Decision:
        """Decide on one step.

        Args:
            stats: the statistics of the gradients before clipping. For a named group, those of its
                parameters.

        Returns:
            The factor to multiply the gradients by, and whether to skip the step.
        """

    def native(self, names: tuple[str, ...]) -> NativePolicy | None:
        """The policy in the form that the extension takes on the CPU, where it replaces `decide`.

        Args:
            names: the names of the rows. The same object from step to step while they do not change.

        Returns:
            None if the extension does not implement the policy. `decide` is called then.
        """
        return None

    def settings(self) -> dict[str, str | int | float]:
        """The settings by name, as far as they are numbers or text."""
        return {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and isinstance(value, str | int | float)
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"

    def state_dict(self) -> dict[str, Any]:
        """The state of the policy as tensors and numbers; empty for a policy without state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another policy.
        """
        if state:
            name = type(self).__name__
            raise ValueError(
                f"[{name}.load_state_dict] state: {name} has no state, but this one has "
                f"{', '.join(sorted(state))}; it was saved with another policy"
            )


class ElementPolicy(Policy):
    """Base class of policies that change gradients element by element, in `apply_`.

    On a GPU gradients are changed even if the step is skipped, because the host does not know about the skip.
    """

    one_factor = False

    def decide(self, stats: GradStats) -> Decision:
        return Decision(torch.ones_like(stats.deciding()))

    def check(self, operation: str, params: Sequence[Tensor], names: Sequence[str]) -> None:
        """Check the gradients before any gradient of the clipper is changed.

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
            params: the parameters, each listed once.
            shards: for each gradient the part that this rank holds, or None if there is no gradient. None
                instead of the list means the gradients themselves.

        Returns:
            float64 [N]: the ratio of each gradient's L2 norms after and before, the same on all ranks that
            share it. None if the ratio is not known; it is then measured.
        """
