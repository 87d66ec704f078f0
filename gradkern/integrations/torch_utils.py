"""Route `torch.nn.utils`' clipping functions through gradkern, for loops one does not own.

Reached are callers that look the functions up when they call them (Lightning, accelerate and the
Hugging Face Trainer, timm, torchtitan), and a `clip_grad_norm_` that was imported before by name:
torch's own looks up what it consists of in its module, and finds gradkern there. Not reached: the other
functions where they were imported before by name, FSDP1's method, DeepSpeed and Megatron.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.nn.utils
from torch.nn.utils import clip_grad

from gradkern.clipping import functional

_ROUTES: tuple[tuple[Any, str, Any], ...] = (
    (torch.nn.utils, "clip_grad_norm_", functional.clip_grad_norm_),
    (torch.nn.utils, "clip_grad_value_", functional.clip_grad_value_),
    (torch.nn.utils, "get_total_norm", functional.get_total_norm),
    (torch.nn.utils, "clip_grads_with_norm_", functional.clip_grads_with_norm_),
    (clip_grad, "clip_grad_norm_", functional.clip_grad_norm_),
    (clip_grad, "clip_grad_value_", functional.clip_grad_value_),
    (clip_grad, "_get_total_norm", functional.get_total_norm),
    (clip_grad, "_clip_grads_with_norm_", functional.clip_grads_with_norm_),
)

_originals: dict[tuple[int, str], Any] = {}


def patch_torch() -> None:
    """Replace the clipping functions of `torch.nn.utils` by gradkern's. Twice is as good as once.

    Not reached: `get_total_norm`, `clip_grads_with_norm_` and `clip_grad_value_` where other modules
    imported them before by name, FSDP1's method, DeepSpeed and Megatron. A `clip_grad_norm_` that was
    imported before is reached.
    """
    for module, name, replacement in _ROUTES:
        if (id(module), name) not in _originals:
            _originals[id(module), name] = getattr(module, name)
            setattr(module, name, replacement)


def unpatch_torch() -> None:
    """Put torch's own functions back."""
    for module, name, _ in _ROUTES:
        original = _originals.pop((id(module), name), None)
        if original is not None:
            setattr(module, name, original)


@contextlib.contextmanager
def patched_torch() -> Iterator[None]:
    """`patch_torch` for the length of a with-block; leaves an outer patch as it is."""
    already = bool(_originals)
    patch_torch()
    try:
        yield
    finally:
        if not already:
            unpatch_torch()
