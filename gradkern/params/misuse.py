"""Warnings about gradients that are clipped or recorded at the wrong place of a training loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gradkern._util.warning import warn
from gradkern.params import steps


class Misuse:
    """The checks of a clipper or a monitor, each of which warns once. They cost about a microsecond a call.

    Args:
        operation: the name that messages start with.
        action: what is done with the gradients: "clip" or "record".
    """

    def __init__(self, operation: str, action: str) -> None:
        self._operation, self._action = operation, action
        self._told: set[str] = set()
        self._first = 0
        """The first row that had a gradient at the last search."""
        steps.watch()

    def check_used(self, params: Sequence[Tensor]) -> None:
        """Check that no optimizer has stepped with these gradients. Call it before they are changed.

        Warns:
            GradkernWarning: an optimizer has.
        """
        if "used" not in self._told and steps.is_used(params, self._first):
            self._tell("used", used(self._action, "clip_(), record()"))

    def check_present(self, params: Sequence[Tensor], has_grad: Sequence[bool]) -> None:
        """Check that a parameter has a gradient.

        Warns:
            GradkernWarning: none has; or, to clip, all are frozen.
        """
        if self._first < len(has_grad) and has_grad[self._first]:
            return
        if True in has_grad:
            self._first = has_grad.index(True)
        elif "absent" not in self._told and len(params):
            if any(param.requires_grad for param in params):
                self._tell("absent", no_gradient(self._action))
            elif self._action == "clip":
                self._tell("absent", frozen(self._action))

    def _tell(self, key: str, message: str) -> None:
        self._told.add(key)
        warn(f"[{self._operation}] {message}")


class DropInMisuse:
    """The same checks for the drop-in functions, which know a model by its first parameter."""

    def __init__(self) -> None:
        self._told: dict[str, WeakIdKeyDictionary] = {}
        self._first = 0
        """The row where the last search found a gradient."""

    def check(self, operation: str, params: Sequence[Tensor]) -> None:
        """Both checks."""
        self.check_used(operation, params)
        self.check_present(operation, params)

    def check_used(self, operation: str, params: Sequence[Tensor]) -> None:
        """`Misuse.check_used`; finds something only if `steps.noted` is not empty."""
        steps.watch()
        if steps.is_used(params):
            self._tell("used", operation, params, used("clip", f"{operation}()"))

    def check_present(self, operation: str, params: Sequence[Tensor]) -> None:
        """`Misuse.check_present`; usually reads one `.grad`."""
        if self._first < len(params) and params[self._first].grad is not None:
            return
        first = next((i for i, p in enumerate(params) if p.grad is not None), None)
        if first is not None:
            self._first = first
        elif any(p.requires_grad for p in params):
            self._tell("absent", operation, params, no_gradient("clip"))

    def check_frozen(self, operation: str, params: Sequence[Tensor], has_grad: Sequence[bool]) -> None:
        """Check that a parameter is trainable or has a gradient."""
        if not len(params) or params[0].requires_grad or True in has_grad:
            return
        if not any(p.requires_grad for p in params):
            self._tell("absent", operation, params, frozen("measure"))

    def _tell(self, key: str, operation: str, params: Sequence[Tensor], message: str) -> None:
        """Warn once about each list, identified by its first parameter."""
        told = self._told.setdefault(key, WeakIdKeyDictionary())
        if params[0] not in told:
            told[params[0]] = True
            warn(f"[{operation}] {message}")


def used(action: str, calls: str) -> str:
    """The message for gradients that an optimizer has used already.

    Args:
        calls: those of gradkern, between backward() and step().
    """
    return (
        f"an optimizer has stepped with these gradients already, so it is too late to {action} them. The "
        f"order is loss.backward(), {calls}, optimizer.step(), optimizer.zero_grad()"
    )


def no_gradient(action: str) -> str:
    """The message for parameters of which none has a gradient."""
    return (
        f"no parameter has a gradient, so there is nothing to {action}. It is too early (before "
        "loss.backward()), too late (after zero_grad()), or something else keeps the gradients: an optimizer "
        "that steps within backward frees them (clip in its hook), DeepSpeed's ZeRO and FSDP's flat "
        "parameters hold them elsewhere (use the engine's own clipping and its norm)"
    )


def frozen(action: str) -> str:
    """The message for parameters of which none is trainable."""
    return (
        f"all parameters are frozen (requires_grad is False), so there is nothing to {action}. Set "
        "requires_grad of those to train, or pass another model"
    )
