"""The loss of a loop that records a number: it is found where `backward` runs."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from gradkern._util.warning import LOGGER
from gradkern.monitor.graph import number_of

#: Parameters with a hook, evenly spread over a model: some may get no gradient (experts, frozen layers).
MOST_HOOKS = 16
#: Calls of `backward` that are looked at between two recorded steps. Two tell most losses that differ from
#: micro-batches; each costs a walk.
MOST_CALLS = 3
#: Every call of `backward` passes through this function of torch.
_ENGINE = getattr(getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None)


class BackwardWatch:
    """Hooks on a few parameters that hand over the nodes of the losses of the next calls of `backward`.

    A hook reads nothing but the argument of the running `backward`. It changes no gradient, keeps no node,
    and no error leaves it.

    Args:
        found: called inside of each `backward`, at most `MOST_CALLS` times after each `arm`, with the node;
            with None if there is not one loss.
    """

    def __init__(self, found: Callable[[Any], None]) -> None:
        self._found = found
        self._handles: list[Any] = []
        self._armed = False
        self._numbers = set[int]()
        """`number_of` the nodes since `arm`: all hooks of a call see the same one."""

    def arm(self, params: Sequence[Tensor]) -> None:
        """Wait for the next `backward`. The hooks are added once."""
        self._armed = _ENGINE is not None and not _compiles_backward()
        self._numbers.clear()
        if self._armed and not self._handles:
            hook = _not_traced(self._hook)
            for p in itertools.islice(filter(_takes_hook, _spread(params)), MOST_HOOKS):
                self._handles.append(p.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the hooks."""
        self._armed = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, _: Tensor) -> None:
        if not self._armed:
            return
        try:
            self._look()
        except Exception:
            self._armed = False
            LOGGER.debug("the loss of a backward pass was not found", exc_info=True)

    def _look(self) -> None:
        root = _root_of_backward()
        number = -1 if root is None else number_of(root)
        if number not in self._numbers:
            self._numbers.add(number)
            self._armed = root is not None and len(self._numbers) < MOST_CALLS
            self._found(root)


def _spread(params: Sequence[Tensor]) -> Iterator[Tensor]:
    """All parameters, those first that are evenly spread from the last one on."""
    every = max(-(-len(params) // MOST_HOOKS), 1)
    for first in range(every):
        yield from params[len(params) - 1 - first :: -every] if first < len(params) else ()


def _takes_hook(param: Tensor) -> bool:
    return type(param) in (Tensor, torch.nn.Parameter) and param.requires_grad and param.is_leaf


def _not_traced(hook: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """The hook, which Dynamo leaves alone where `backward` is called by a compiled function. Dynamo is not
    imported for this: torch does so itself, for its optimizers as well as to compile."""
    if "torch._dynamo" not in sys.modules:
        return hook
    return torch.compiler.disable(hook)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


def _compiles_backward() -> bool:
    """Whether torch traces `backward` too, and with it the hooks."""
    dynamo = sys.modules.get("torch._dynamo")
    return bool(dynamo and getattr(dynamo.config, "compiled_autograd", False))


def _root_of_backward() -> Any:
    """The node of the loss whose `backward` runs; None if there are several, or none is found.

    The threads of other devices run hooks while that of the caller waits inside of `backward`.
    """
    frames = sys._current_frames()
    own = _outermost(frames.pop(threading.get_ident(), None))
    calls = [own] if own else [one for one in map(_outermost, frames.values()) if one]
    if len(calls) != 1:
        return None
    outputs: Sequence[Any] = calls[0].f_locals.get("t_outputs") or ()
    return outputs[0].grad_fn if len(outputs) == 1 and isinstance(outputs[0], Tensor) else None


def _outermost(frame: FrameType | None) -> FrameType | None:
    """The first of nested calls of `backward` (re-entrant checkpoints make their own)."""
    found = None
    while frame is not None:
        found = frame if frame.f_code is _ENGINE else found
        frame = frame.f_back
    return found
