"""Route `torch.nn.utils`' clipping functions through gradkern, for loops that you do not write yourself.

Reached are callers that look the functions up when they call them (Lightning, Accelerate and the Hugging
Face Trainer, timm, torchtitan, most training scripts), and a `clip_grad_norm_` that was imported before by
name: torch's own looks up what it consists of in its module, and finds gradkern there. Not reached are the
other functions where they were imported before by name (`Patch.older` lists them), FSDP1's method, DeepSpeed
and Megatron.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.utils
from torch.nn.utils import clip_grad

from gradkern.integrations import bridge
from gradkern.monitor import GradMonitor

_ROUTES: tuple[tuple[Any, str, Any], ...] = (
    (torch.nn.utils, "clip_grad_norm_", bridge.clip_grad_norm_),
    (torch.nn.utils, "clip_grad_value_", bridge.clip_grad_value_),
    (torch.nn.utils, "get_total_norm", bridge.get_total_norm),
    (torch.nn.utils, "clip_grads_with_norm_", bridge.clip_grads_with_norm_),
    (clip_grad, "clip_grad_norm_", bridge.clip_grad_norm_),
    (clip_grad, "clip_grad_value_", bridge.clip_grad_value_),
    (clip_grad, "_get_total_norm", bridge.get_total_norm),
    (clip_grad, "_clip_grads_with_norm_", bridge.clip_grads_with_norm_),
)

_originals: dict[tuple[str, str], Any] = {}
_lock = threading.RLock()


class Patch:
    """What `patch_torch` replaced."""

    @property
    def replaced(self) -> list[str]:
        """The names that are gradkern's now: "torch.nn.utils.clip_grad_norm_", …"""
        return [f"{module}.{name}" for module, name in _originals]

    @property
    def older(self) -> list[str]:
        """Names in other modules that are still torch's functions, imported before the patch: not reached.
        Walks all imported modules."""
        torchs = {id(f) for (_, name), f in _originals.items() if name != "clip_grad_norm_"}
        found = []
        for module_name, module in list(sys.modules.items()):
            if module_name.split(".")[0] in ("torch", "gradkern"):
                continue
            names = list(getattr(module, "__dict__", {}).items())
            found += [f"{module_name}.{name}" for name, value in names if id(value) in torchs]
        return sorted(found)

    def __repr__(self) -> str:
        return f"Patch(replaced={self.replaced}, older={self.older})"


def patch_torch(monitor: GradMonitor | None = None, *, when: Callable[[], bool] | None = None) -> Patch:
    """Replace the clipping functions of `torch.nn.utils` by gradkern's. Idempotent.

    Args:
        monitor: records each clip of its parameters from here on, whoever makes it: from before clipping,
            with the limit, from the read that clips. The step is recorded when the monitor's optimizers step,
            when a parameter is clipped again, or by ``monitor.record(loss=loss)``. Several monitors can be
            given, one a call; each gets the clips of its own parameters.
        when: called at each clip; the clip is recorded only if it returns True. Default: always.

    Returns:
        A `Patch`: what was replaced, and which modules still hold torch's own functions.

    Example:
        >>> monitor = gradkern.GradMonitor(model, optimizer, "runs/first")
        >>> gradkern.patch_torch(monitor)
        >>> train(model, optimizer)  # calls torch.nn.utils.clip_grad_norm_ somewhere

    Notes:
        Clips by `get_total_norm` and `clip_grads_with_norm_` are recorded too, with one more read; so are
        those of a `clip_grad_norm_` that was imported before the patch. Clips inside a compiled graph are
        not recorded.
    """
    with _lock:
        for module, name, replacement in _ROUTES:
            key = module.__name__, name
            if key not in _originals:
                _originals[key] = getattr(module, name)
                setattr(module, name, replacement)
        if monitor is not None:
            bridge.attach(monitor, when)
    return Patch()


def unpatch_torch() -> None:
    """Restore torch's own functions, and detach all monitors."""
    with _lock:
        bridge.detach_all()
        for module, name, _ in _ROUTES:
            original = _originals.pop((module.__name__, name), None)
            if original is not None:
                setattr(module, name, original)


@contextlib.contextmanager
def patched_torch(
    monitor: GradMonitor | None = None, *, when: Callable[[], bool] | None = None
) -> Iterator[Patch]:
    """`patch_torch` for a with-block. An outer patch stays in place."""
    with _lock:
        already = bool(_originals)
        attached = monitor is not None and bridge.is_attached(monitor)
        patch = patch_torch(monitor, when=when)
    try:
        yield patch
    finally:
        with _lock:
            if not already:
                unpatch_torch()
            elif monitor is not None and not attached:
                bridge.detach(monitor)
