"""`adaptive_clip_grad_`: adaptive gradient clipping as a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from gradkern.clipping import observing, route
from gradkern.clipping.measure import measure
from gradkern.clipping.policies import AGC
from gradkern.clipping.policies.checks import at_least
from gradkern.params.arguments import as_list, as_order, check_entries


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor],
    clip_factor: float = 0.01,
    eps: float = 1e-3,
    norm_type: float = 2.0,
) -> None:
    """Adaptive gradient clipping: limit the gradient norm of each unit relative to the norm of its weights.

    ``g *= min(1, clip_factor * max(||w||, eps) / ||g||)`` for each unit, in place. A unit is one output: the
    norms are taken over all dimensions but the first. A tensor of one dimension or none is one unit. Source:
    Brock et al., "High-performance large-scale image recognition without normalization", 2021.

    Args:
        parameters: Parameters of any shape and floating-point dtype. Those without a gradient are skipped.
        clip_factor: λ of the paper.
        eps: lower bound for the norm of a unit's weights.
        norm_type: must be 2.

    Raises:
        TypeError, ValueError: an invalid argument. Gradients are unchanged.

    Warns:
        GradkernWarning: no parameter has a gradient, or an optimizer has used these gradients already.

    Notes:
        A parameter listed twice is scaled once. No host-device synchronisation.

    Equivalent to:
        ``timm.utils.agc.adaptive_clip_grad(parameters, clip_factor, eps)``
    """
    operation = "adaptive_clip_grad_"
    if as_order(operation, norm_type) != 2.0:
        raise ValueError(f"[{operation}] norm_type: expected 2, the norm of the paper, got {norm_type!r}")
    clip_factor = at_least(operation, "clip_factor", clip_factor, 0.0)
    policy = AGC(clip_factor, at_least(operation, "eps", eps, 0.0))
    listed = as_list(operation, parameters)
    check_entries(operation, listed)
    once = {id(p): p for p in listed}
    params = list(once.values())
    names = [f"parameters[{i}]" for i in range(len(params))]
    policy.check(operation, params, names)
    route.misuse.check_used(operation, params)
    report = observing.observed(params)
    stats = None if report is None else measure(params)
    policy.apply_(operation, params, route.written_shards([p.grad for p in params]), names)
    route.misuse.check_present(operation, params)
    if report is not None and stats is not None:
        report(dataclasses.replace(stats, applied=True))
