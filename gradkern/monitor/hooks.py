"""Taking hooks off an optimizer, which may be stepping just then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

import torch
from torch.utils.hooks import RemovableHandle

#: The code around every optimizer's step, which calls the hooks.
_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def take_off(handles: Iterable[RemovableHandle]) -> None:
    """Remove hooks. Within a step torch goes through them, and fails if one is removed meanwhile: there
    something that does nothing takes their place."""
    stepping = any(_within_step(frame) for frame in sys._current_frames().values())
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        if not stepping:
            handle.remove()
        elif hooks is not None and handle.id in hooks:
            hooks[handle.id] = _nothing


def _within_step(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _STEP:
        frame = frame.f_back
    return frame is not None


def _nothing(*_: object) -> None:
    return None
