"""Hooks around the steps of all optimizers: listeners, and which gradients a step has used.

torch calls its global hooks around every optimizer's step: before the optimizer's own pre-hooks and after
its own post-hooks. One pair serves all clippers and monitors. It is never removed, because torch cannot
remove a hook while a step iterates over the hooks.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class StepListener(Protocol):
    """Receives the steps of an optimizer."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None: ...
    def after_step(self, optimizer: torch.optim.Optimizer) -> None: ...


_listeners: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[weakref.ref[StepListener], ...]] = (
    weakref.WeakKeyDictionary()
)


def listen(optimizer: torch.optim.Optimizer, listener: StepListener) -> None:
    """Call `listener` around each step. Neither object keeps the other alive."""
    watch()
    others = tuple(ref for ref in _listeners.get(optimizer, ()) if ref() is not None)
    _listeners[optimizer] = (*others, weakref.ref(listener))


def unlisten(optimizer: torch.optim.Optimizer, listener: StepListener) -> None:
    """Stop calling `listener`. Allowed during a step and from any thread."""
    _listeners[optimizer] = tuple(
        ref for ref in _listeners.get(optimizer, ()) if ref() not in (None, listener)
    )


def watch() -> None:
    """Register the hooks. Idempotent."""
    global watching
    if not watching:
        watching = True
        register_optimizer_step_pre_hook(_before)
        register_optimizer_step_post_hook(_after)


watching = False


def _before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    _stepping[id(optimizer)] = _gradients(optimizer)
    for ref in _listeners.get(optimizer, ()):
        listener = ref()
        if listener is not None:
            listener.before_step(optimizer)


def _after(optimizer: torch.optim.Optimizer, args: Any = (), kwargs: Any = None) -> None:
    if torch.compiler.is_compiling():
        return
    for ref in _listeners.get(optimizer, ()):
        listener = ref()
        if listener is not None:
            listener.after_step(optimizer)
    used = _stepping.pop(id(optimizer), {})
    # A closure makes the gradients within the step.
    closure = any(callable(argument) for argument in (*args[1:], *(kwargs or {}).values()))
    noted.update(_gradients(optimizer) if closure else used)


# ---- gradients that a step has used ----

_Noted = tuple[weakref.ref[Tensor], int]

#: By `id` of a parameter: the gradient that a step has used, and its version at that time. Only the first
#: parameter with a gradient is noted, in each of the first groups, so that the cost is bounded.
noted: dict[int, _Noted] = {}
#: The same for optimizers that are stepping now, whose hooks and closures may still change the gradients.
_stepping: dict[int, dict[int, _Noted]] = {}
_GROUPS, _TRIES, _MOST = 8, 16, 4096


def _gradients(optimizer: torch.optim.Optimizer) -> dict[int, _Noted]:
    if len(noted) > _MOST:
        is_used(())  # removes entries whose gradients no longer exist
    found: dict[int, _Noted] = {}
    for group in optimizer.param_groups[:_GROUPS]:
        for param in itertools.islice(group["params"], _TRIES):
            grad = param.grad
            if grad is not None:
                found[id(param)] = weakref.ref(grad), version_of(grad)
                break
    return found


def is_used(params: Sequence[Tensor], start: int = 0) -> bool:
    """Whether an optimizer has stepped with the current gradients of `params`.

    Also False if that is unknown: only `_TRIES` parameters from `start` on are examined, and only the first
    gradient of each optimizer group is noted.
    """
    for key, (ref, version) in list(noted.items()):
        grad = ref()
        if grad is None or version != version_of(grad):
            noted.pop(key, None)  # the gradient was freed or has been written to
        elif any(id(p) == key and p.grad is grad for p in itertools.islice(params, start, start + _TRIES)):
            return True
    return False


def version_of(grad: Tensor) -> int:
    """How often a gradient was written to in place; -1 if that is not counted."""
    return -1 if grad.is_inference() else grad._version


@dataclass(frozen=True)
class SeenGradient:
    """A parameter's gradient as it was once: which tensor it was, and its version."""

    param: weakref.ref[Tensor]
    grad: weakref.ref[Tensor]
    version: int

    @classmethod
    def first_of(cls, params: Iterable[Tensor]) -> SeenGradient | None:
        """The first gradient that exists."""
        for param in params:
            if param.grad is not None:
                return cls(weakref.ref(param), weakref.ref(param.grad), version_of(param.grad))
        return None

    def has_changed(self) -> bool | None:
        """Whether it was replaced or written to since. None if it was removed."""
        param = self.param()
        grad = None if param is None else param.grad
        if grad is None:
            return None
        return grad is not self.grad() or version_of(grad) != self.version
