"""Route the clipping functions of `torch.nn.utils` through gradkern, for training loops that others wrote.

The patch reaches code that looks the functions up when it calls them: Lightning, Accelerate, the Hugging Face
Trainer, timm, torchtitan, most training scripts. It also reaches a `clip_grad_norm_` that was imported by
name before, because torch's function calls others that are looked up in its module.

It does not reach other functions that were imported by name before (`Patch.older` lists them), the method of
FSDP1, DeepSpeed and Megatron.
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
#: Whether the patch stays in place after the last block of `patched_torch`.
_stays = False
#: The blocks of `patched_torch` that are open. They may end in any order.
_blocks: list[_Block] = []
_lock = threading.RLock()


class _Block:
    """A block of `patched_torch`.

    Attributes:
        monitor: the one to attach; may be None.
        detaches: whether `monitor` is detached with the last block that has it.
    """

    def __init__(self, monitor: GradMonitor | None) -> None:
        self.monitor = monitor
        shared = any(block.detaches for block in _blocks if block.monitor is monitor)
        self.detaches: bool = monitor is not None and (shared or not bridge.is_attached(monitor))


class Patch:
    """The functions that `patch_torch` replaced, and those that it could not reach."""

    @property
    def replaced(self) -> list[str]:
        """The names that are replaced: "torch.nn.utils.clip_grad_norm_", …"""
        return [f"{module}.{name}" for module, name in _originals]

    @property
    def older(self) -> list[str]:
        """Names in other modules that still refer to torch's own functions, because they were imported before
        the patch. Searches all imported modules."""
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
        monitor: a `GradMonitor` that records every clip of its parameters from now on, with the norms before
            clipping and the limit. A step is recorded when the monitor's optimizers have stepped, when a
            parameter is clipped again, or by ``monitor.record(loss=loss)``. Call the function once for each
            of several monitors; each records the clips of its own parameters.
        when: called at every clip, which is recorded only if it returns True. Default: always.

    Returns:
        A `Patch`, which lists what was replaced and which modules still use torch's own functions.

    Raises:
        TypeError: `monitor` is not a GradMonitor.

    Examples:
        >>> monitor = gradkern.GradMonitor(model, optimizer, "runs/first")
        >>> gradkern.patch_torch(monitor)
        >>> train(model, optimizer)  # calls torch.nn.utils.clip_grad_norm_ somewhere

    Notes:
        gradkern's own functions and `GradClipper.clip_` are recorded too. `clip_grad_norm_` and
        `GradClipper.clip_` measure, record and clip with one read. `clip_grads_with_norm_`,
        `clip_grad_value_`, `adaptive_clip_grad_` and a `clip_grad_norm_` that was imported before the patch
        are recorded with one more read. Clips inside a compiled graph are not recorded.

        A step whose gradients are clipped several times has the norms from before the first clip, and the
        smallest limit. Statistics that are given to `GradMonitor.record` replace those of the clip.
    """
    global _stays
    with _lock:
        _patch(monitor, when)
        _stays = True
    return Patch()


def _patch(monitor: GradMonitor | None, when: Callable[[], bool] | None) -> None:
    if monitor is not None:
        bridge.attach(monitor, when)
    for module, name, replacement in _ROUTES:
        key = module.__name__, name
        if key not in _originals:
            _originals[key] = getattr(module, name)
            setattr(module, name, replacement)


def unpatch_torch() -> None:
    """Restore torch's own functions and detach all monitors. Idempotent."""
    global _stays
    with _lock:
        _stays = False
        bridge.detach_all()
        _restore()


def _restore() -> None:
    for module, name, _ in _ROUTES:
        original = _originals.pop((module.__name__, name), None)
        if original is not None:
            setattr(module, name, original)


@contextlib.contextmanager
def patched_torch(
    monitor: GradMonitor | None = None, *, when: Callable[[], bool] | None = None
) -> Iterator[Patch]:
    """`patch_torch` as a context manager. A patch that was there before stays in place, and so does that of
    another block which is still open: blocks may overlap, also in several threads.

    Args:
        monitor, when: as in `patch_torch`.

    Yields:
        The `Patch`.

    Examples:
        >>> with gradkern.patched_torch(monitor):
        ...     train(model, optimizer)
    """
    with _lock:
        block = _Block(monitor)
        _patch(monitor, when)
        _blocks.append(block)
    try:
        yield Patch()
    finally:
        with _lock:
            _blocks.remove(block)
            shared = any(other.monitor is monitor for other in _blocks)
            if monitor is not None and block.detaches and not shared:
                bridge.detach(monitor)
            if not (_blocks or _stays):
                _restore()
