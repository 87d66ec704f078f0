"""Steps of optimizers: who is told of them, and which gradients they have used.

torch calls its global hooks around every optimizer's step: before the optimizer's own pre-hooks, and after
its own post-hooks. One pair of these does for all clippers and monitors. It stays for good, because none
can be removed while a step goes through them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class StepListener(Protocol):
    """What is told of an optimizer's steps."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None: ...
    def after_step(self, optimizer: torch.optim.Optimizer) -> None: ...


_listeners: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[weakref.ref[StepListener], ...]] = (
    weakref.WeakKeyDictionary()
)


def listen(optimizer: torch.optim.Optimizer, listener: StepListener) -> None:
    """Tell `listener` of each step; neither of the two keeps the other alive."""
    watch()
    others = tuple(ref for ref in _listeners.get(optimizer, ()) if ref() is not None)
    _listeners[optimizer] = (*others, weakref.ref(listener))


def unlisten(optimizer: torch.optim.Optimizer, listener: StepListener) -> None:
    """Tell it no more. Allowed in the middle of a step, and from any thread."""
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


def _after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for ref in _listeners.get(optimizer, ()):
        listener = ref()
        if listener is not None:
            listener.after_step(optimizer)
    noted.update(_stepping.pop(id(optimizer), {}))


# ---- gradients that a step has used ----

_Noted = tuple[weakref.ref[Tensor], int]

#: By `id` of a parameter: the gradient that a step has used, and its version then. Only of the first
#: parameter with gradient of each of the first groups, so that the cost does not grow with the model.
noted: dict[int, _Noted] = {}
#: The same of optimizers that are just stepping: what their hooks and closures do is in time.
_stepping: dict[int, dict[int, _Noted]] = {}
_GROUPS, _TRIES, _MOST = 8, 16, 4096


def _gradients(optimizer: torch.optim.Optimizer) -> dict[int, _Noted]:
    if len(noted) > _MOST:
        is_used(())  # forgets those that are gone
    found: dict[int, _Noted] = {}
    for group in optimizer.param_groups[:_GROUPS]:
        for param in itertools.islice(group["params"], _TRIES):
            grad = param.grad
            if grad is not None:
                found[id(param)] = weakref.ref(grad), _version(grad)
                break
    return found


def is_used(params: Sequence[Tensor], start: int = 0) -> bool:
    """Whether an optimizer has stepped with the gradients of `params` as they are now.

    False also where that is not known: only `_TRIES` parameters from `start` on are looked at, and only the
    first gradient of an optimizer's group is noted.
    """
    for key, (ref, version) in list(noted.items()):
        grad = ref()
        if grad is None or version != _version(grad):
            noted.pop(key, None)  # freed, or written to since: it cannot become a used gradient again
        elif any(id(p) == key and p.grad is grad for p in itertools.islice(params, start, start + _TRIES)):
            return True
    return False


def _version(grad: Tensor) -> int:
    return -1 if grad.is_inference() else grad._version
