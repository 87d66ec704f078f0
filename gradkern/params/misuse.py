"""Signs that gradients are clipped or recorded at the wrong place of a training loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradkern._util.warning import warn
from gradkern.params import steps


class Misuse:
    """What a clipper or a monitor tells of once; a microsecond a call.

    Args:
        operation: for messages.
        action: what it does with gradients: "clip", "record".
    """

    def __init__(self, operation: str, action: str) -> None:
        self._operation, self._action = operation, action
        self._told: set[str] = set()
        self._first = 0
        """The first row that had a gradient when this was looked for last."""
        steps.watch()

    def check_used(self, params: Sequence[Tensor]) -> None:
        """Before the gradients are changed: no optimizer has stepped with them.

        Warns:
            GradkernWarning: one has.
        """
        if "used" in self._told or self._first >= len(params) or not steps.is_used(params[self._first]):
            return
        self._tell(
            "used",
            f"an optimizer has stepped with these gradients already, so it is too late to {self._action} "
            "them. The order is loss.backward(), clip_(), record(), optimizer.step(), optimizer.zero_grad()",
        )

    def check_present(self, params: Sequence[Tensor], has_grad: Sequence[bool]) -> None:
        """Something has a gradient.

        Warns:
            GradkernWarning: nothing has one, though something is trainable.
        """
        if self._first < len(has_grad) and has_grad[self._first]:
            return
        if True in has_grad:
            self._first = has_grad.index(True)
        elif "absent" not in self._told and any(param.requires_grad for param in params):
            self._tell("absent", no_gradient(self._action))

    def _tell(self, key: str, message: str) -> None:
        self._told.add(key)
        warn(f"[{self._operation}] {message}")


def no_gradient(action: str) -> str:
    """What is said where no parameter has a gradient."""
    return (
        f"no parameter has a gradient, so there is nothing to {action}. It is too early (before "
        "loss.backward()), too late (after zero_grad()), or something else keeps the gradients: an optimizer "
        "that steps within backward frees them (clip in its hook), DeepSpeed's ZeRO and FSDP's flat "
        "parameters hold them elsewhere (use the engine's own clipping and its norm)"
    )
