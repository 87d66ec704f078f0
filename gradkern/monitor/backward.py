"""The loss of a loop that records a number: it is found where `backward` runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

#: Parameters with a hook, evenly spread over a model: some may get no gradient (experts, frozen layers).
MOST_HOOKS = 16
#: Every call of `backward` passes through this function of torch.
_ENGINE = getattr(getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None)


class BackwardWatch:
    """Hooks on a few parameters that hand over the node of the loss of the next `backward`.

    A hook reads nothing but the argument of the running `backward`. It changes no gradient and keeps no node.

    Args:
        found: called at most once after each `arm`, inside of `backward`, with the node.
    """

    def __init__(self, found: Callable[[Any], None]) -> None:
        self._found = found
        self._handles: list[Any] = []
        self._armed = False

    def arm(self, params: Sequence[Tensor]) -> None:
        """Wait for the next `backward`. The hooks are added once."""
        self._armed = _ENGINE is not None and not _compiles_backward()
        if self._armed and not self._handles:
            able = [p for p in params if type(p) in (Tensor, torch.nn.Parameter) and p.requires_grad]
            able = [p for p in able if p.is_leaf]
            every = max(-(-len(able) // MOST_HOOKS), 1)
            for p in able[::-every]:
                self._handles.append(p.register_post_accumulate_grad_hook(self._hook))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the hooks."""
        self._armed = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, _: Tensor) -> None:
        if self._armed:
            self._armed = False
            root = _root_of_backward()
            if root is not None:
                self._found(root)


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
