"""`adaptive_clip_grad_`: adaptive gradient clipping as a function."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gradkern.clipping.ladder import written_shards
from gradkern.clipping.policies import AGC
from gradkern.params.arguments import as_list, as_number


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    norm_type: float = 2.0,
) -> None:
    """Scale the gradient of each unit to `clip_factor` times the norm of the unit's weights, in place.

    A unit is one output: all dimensions but the first; a tensor of up to one dimension is one unit. Brock et
    al., "High-performance large-scale image recognition without normalization", 2021.

    Args:
        parameters: Parameters; entries without gradient are skipped.
        clip_factor: λ of the paper.
        eps: least norm of a unit's weights.
        norm_type: 2.

    Raises:
        TypeError, ValueError: bad arguments, or another `norm_type`. Gradients are unchanged.

    Notes:
        A gradient listed twice is scaled once. No host-device synchronisation.

    Equivalent to:
        ``timm.utils.agc.adaptive_clip_grad(parameters, clip_factor, eps)``
    """
    operation = "adaptive_clip_grad_"
    if as_number(operation, "norm_type", norm_type) != 2.0:
        raise ValueError(f"[{operation}] norm_type: expected 2, the norm of the paper, got {norm_type!r}")
    policy = AGC(clip_factor, eps)
    once = {id(p): p for p in as_list(operation, parameters)}
    params = list(once.values())
    names = [f"parameters[{i}]" for i in range(len(params))]
    policy.apply_(operation, params, written_shards([p.grad for p in params]), names)
