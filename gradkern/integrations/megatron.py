"""Gradient norm and scaling in Megatron-core with gradkern's kernels.

Megatron-core takes its multi-tensor functions from Transformer Engine or Apex, or loops over the tensors.
`patch_megatron` replaces them by those of `gradkern.compat`, which have the same signatures:
``multi_tensor_applier``, ``multi_tensor_l2norm`` and ``multi_tensor_scale``.
"""

from __future__ import annotations

import importlib
from typing import Any

from gradkern import compat

#: Modules of megatron.core that hold the functions, and their names there.
_PLACES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "megatron.core.optimizer.clip_grads",
        {
            "multi_tensor_applier": compat.multi_tensor_applier,
            "l2_norm_impl": compat.multi_tensor_l2norm,
            "multi_tensor_scale_impl": compat.multi_tensor_scale,
        },
    ),
    (
        "megatron.core.optimizer.optimizer",
        {
            "multi_tensor_applier": compat.multi_tensor_applier,
            "multi_tensor_scale_impl": compat.multi_tensor_scale,
        },
    ),
)

_originals: dict[tuple[str, str], Any] = {}


def patch_megatron() -> list[str]:
    """Make megatron.core measure and scale gradients with gradkern. Idempotent.

    Returns:
        The names that were replaced.

    Raises:
        ImportError: megatron.core is not installed.
        AttributeError: this version of megatron.core lacks one of the names. Nothing is replaced.
    """
    found = [
        (importlib.import_module(module), name, new)
        for module, names in _PLACES
        for name, new in names.items()
    ]
    missing = [f"{module.__name__}.{name}" for module, name, _ in found if not hasattr(module, name)]
    if missing:
        raise AttributeError(
            f"[patch_megatron] megatron.core: expected {', '.join(missing)}, which this version does not "
            "have; tested with megatron-core 0.16.1"
        )
    for module, name, new in found:
        _originals.setdefault((module.__name__, name), getattr(module, name))
        setattr(module, name, new)
    return [f"{module.__name__}.{name}" for module, name, _ in found]


def unpatch_megatron() -> None:
    """Restore the functions of megatron.core. Idempotent."""
    for (module, name), original in _originals.items():
        setattr(importlib.import_module(module), name, original)
    _originals.clear()
