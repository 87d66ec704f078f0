"""`Policy`: what every policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradkern.clipping.policies.decision import Decision
from gradkern.params.stats import GradStats


class Policy(ABC):
    """Decides what is done with the gradients, from their statistics.

    `decide` runs once a step, on the gradients' device and without a synchronisation, so that it can be part
    of a CUDA graph. What a policy remembers from step to step lies in tensors and goes through `state_dict`.
    Over ranks every rank is given the same totals and rows, and so decides the same.
    """

    @abstractmethod
    def decide(self, stats: GradStats) -> Decision:
        """
        Args:
            stats: the statistics of this step, before clipping. Over a named group: of its parameters alone.
        """

    def transform(self, params: Sequence[Tensor], decision: Decision, scale: Tensor | None) -> Tensor | None:
        """For policies that change gradients element by element; others leave it as it is.

        Args:
            params: the parameters, with their gradients.
            decision: what `decide` returned, after the verdict on inf and NaN.
            scale: 0-d; what gradients are multiplied by before (a loss scaler's inverse), or None.

        Returns:
            [N] float64: the ratio of each gradient's L2 norms after and before. None: nothing was done here,
            and the gradients are to be multiplied by the decision's factor.
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
