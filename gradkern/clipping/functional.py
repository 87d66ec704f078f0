"""Drop-in replacements for the clipping functions of `torch.nn.utils`.

Same names, arguments and defaults. What differs from torch, on purpose:

- the norm is right: accumulated in float64 whatever the gradients' type, returned in float32 (float64
  if any gradient is float64 or complex128), never overflowing or underflowing inside;
- nothing is written when nothing is to be clipped, and `max_norm=inf` never writes;
- a gradient listed twice counts once and is scaled once; sparse COO, sliced and expanded gradients
  are accepted; empty tensors contribute nothing to any norm;
- `norm_type=0` counts non-zero elements, not tensors.

All functions are stateless: they walk the list they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from gradkern.clipping import ladder, param_groups
from gradkern.clipping.ladder import RankGroups
from gradkern.params.arguments import as_limit, as_list, as_norm, as_number

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Parameters = Tensor | Iterable[Tensor]
ParamGroups = Sequence[Mapping[str, Any]]
"""As ``optimizer.param_groups``."""


def clip_grad_norm_(
    parameters: Parameters | ParamGroups,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    process_group: ProcessGroup | None = None,
    pp_group: ProcessGroup | None = None,
) -> Tensor:
    """Clip the norm of all gradients together, in place.

    ``total_norm = (sum_i sum_j |g_ij|^p)^(1/p)`` with p = `norm_type`, then
    ``g *= max_norm / (total_norm + 1e-6)`` where that factor is below 1 (the formula of
    `torch.nn.utils.clip_grad_norm_`).

    Args:
        parameters: Parameters (or tensors that have a `.grad`); any shapes, dtypes float32, bfloat16,
            float16, float64, complex64, complex128, mixed as they come. Entries without gradient are
            skipped. Or a list of dicts, as ``optimizer.param_groups``: each group that has a "max_norm" is
            clipped by its own norm, and the others together by `max_norm`.
        max_norm: largest norm to leave; `inf` only measures.
        norm_type: order p of the norm: 2, 1, `inf`, `-inf`, 0 or any other number. Of a sparse gradient
            the elements that are stored count: a negative order does not see the others, which are 0.
        error_if_nonfinite: raise if the total norm is NaN or infinite. Needs the host to know it.
        foreach: accepted as in torch; matters only where torch's own operations are used.
        process_group: ranks that hold different parts of the *plain* tensors (experts, shards made
            by hand); without it plain tensors are taken to be replicas. DTensors know their ranks.
        pp_group: ranks that hold different parts of the model: pipeline stages.

    Returns:
        The total norm before clipping: 0-d float32 (float64 if any gradient is float64 or
        complex128), on the gradients' device. 0.0 if nothing has a gradient. A replicated DTensor,
        already reduced, where all parameters are DTensors of one mesh and no group is named.

    Raises:
        RuntimeError: `error_if_nonfinite`, and the norm is not finite; names the entries that hold
            NaN or inf. Gradients are unchanged.
        TypeError, ValueError: bad arguments, with the index of the offending entry. Gradients are
            unchanged.

    Notes:
        Deterministic for any number of threads. NaN in a gradient makes the norm NaN and, as in torch,
        every gradient NaN. No host-device synchronisation, except: `error_if_nonfinite`; `max_norm` as a
        tensor on a device (its value is read); sparse gradients on a device; gradients on devices without
        a kernel or on several kinds of device, which go to torch's operations.

    Equivalent to:
        ``torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)``
    """
    operation = "clip_grad_norm_"
    if param_groups.are_param_groups(parameters):
        return param_groups.clip(
            parameters, max_norm, norm_type, bool(error_if_nonfinite), RankGroups(process_group, pp_group)
        )
    params = as_list(operation, cast(Parameters, parameters))
    max_norm = as_limit(operation, "max_norm", max_norm)
    norm_type = as_number(operation, "norm_type", norm_type)
    groups = _named(process_group, pp_group)
    arguments = (max_norm, norm_type, bool(error_if_nonfinite))
    total: Tensor = ladder.run(operation, params, arguments, foreach, groups)
    return total


def get_total_norm(
    tensors: Parameters,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    process_group: ProcessGroup | None = None,
    pp_group: ProcessGroup | None = None,
) -> Tensor:
    """The norm of all `tensors` together, as if concatenated into one vector.

    Args:
        tensors: the tensors themselves (gradients, say), not parameters; types and shapes as in
            `clip_grad_norm_`.
        norm_type: order p of the norm, as in `clip_grad_norm_`.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach, process_group, pp_group: as in `clip_grad_norm_`.

    Returns:
        0-d float32 (float64 if any tensor is float64 or complex128), on the tensors' device.

    Raises:
        RuntimeError: `error_if_nonfinite`, and the norm is not finite.
        TypeError, ValueError: bad arguments, with the index of the offending entry.

    Notes:
        Deterministic; synchronises where `clip_grad_norm_` does.

    Equivalent to:
        ``torch.nn.utils.get_total_norm(tensors, norm_type, error_if_nonfinite)``
    """
    operation = "get_total_norm"
    items = as_list(operation, tensors, "tensors")
    norm_type = as_number(operation, "norm_type", norm_type)
    groups = _named(process_group, pp_group)
    total: Tensor = ladder.run(operation, items, (norm_type, bool(error_if_nonfinite)), foreach, groups)
    return total


def clip_grads_with_norm_(
    parameters: Parameters,
    max_norm: float,
    total_norm: Tensor | float,
    foreach: bool | None = None,
) -> None:
    """Scale gradients in place by ``max_norm / (total_norm + 1e-6)`` where that is below 1.

    With the result of `get_total_norm` this gives the same bits as `clip_grad_norm_`.

    Args:
        parameters: as in `clip_grad_norm_`.
        max_norm: largest norm to leave.
        total_norm: the norm to go by; one number, a tensor on any device.
        foreach: as in `clip_grad_norm_`.

    Raises:
        TypeError, ValueError: bad arguments. Gradients are unchanged.

    Notes:
        Synchronises where `total_norm` is on another device than the gradients and where
        `clip_grad_norm_` does; not where both are on one GPU.

    Equivalent to:
        ``torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total_norm)``
    """
    operation = "clip_grads_with_norm_"
    params = as_list(operation, parameters)
    max_norm = as_limit(operation, "max_norm", max_norm)
    total_norm = as_norm(operation, total_norm)
    ladder.run(operation, params, (max_norm, total_norm), foreach)


def clip_grad_value_(
    parameters: Parameters,
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    """Limit every gradient element to ``[-clip_value, clip_value]``, in place, in one pass.

    Memory is written only where an element lies outside. NaN stays NaN.

    Args:
        parameters: as in `clip_grad_norm_`; real dtypes.
        clip_value: the limit.
        foreach: as in `clip_grad_norm_`.

    Raises:
        TypeError, ValueError: bad arguments, a complex gradient, a sparse gradient that is not coalesced
            (its sums are not known before they are made), or a DTensor gradient with a Partial
            placement. Gradients are unchanged.

    Notes:
        Deterministic. Synchronises only where `clip_grad_norm_` does.

    Equivalent to:
        ``torch.nn.utils.clip_grad_value_(parameters, clip_value)``
    """
    operation = "clip_grad_value_"
    params = as_list(operation, parameters)
    clip_value = as_limit(operation, "clip_value", clip_value)
    ladder.run(operation, params, (clip_value,), foreach)


def _named(
    process_group: ProcessGroup | None, pp_group: ProcessGroup | None
) -> tuple[ProcessGroup | None, ProcessGroup | None] | None:
    return None if process_group is None and pp_group is None else (process_group, pp_group)
