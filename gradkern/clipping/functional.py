"""Drop-in replacements for the clipping functions of `torch.nn.utils`.

Names, arguments and defaults are those of torch. The differences are intended:

- Norms are accumulated in float64 for every dtype and returned in float32 (float64 if any gradient is
  float64 or complex128). They neither overflow nor underflow on the way.
- Nothing is written if nothing has to be clipped. `max_norm=inf` never writes.
- A gradient listed twice counts once and is scaled once. Sparse COO, sliced and expanded gradients are
  supported. Empty tensors do not contribute to any norm.
- `norm_type=0` counts non-zero elements, not tensors.

The functions keep no state about the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from gradkern.clipping import observing, param_groups, reported, route
from gradkern.clipping.param_groups import ParamGroups
from gradkern.clipping.route import RankGroups
from gradkern.params.arguments import as_limit, as_list, as_norm, as_order

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Parameters = Tensor | Iterable[Tensor]


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
    """Clip the norm of all gradients taken together, in place.

    ``total_norm = (sum_i sum_j |g_ij|^p)^(1/p)`` with p = `norm_type`, then
    ``g *= max_norm / (total_norm + 1e-6)`` where that factor is below 1 (the formula of
    `torch.nn.utils.clip_grad_norm_`).

    Args:
        parameters: Parameters (or tensors that have a `.grad`); any shapes, dtypes float32, bfloat16,
            float16, float64, complex64, complex128, mixed as they come. Entries without gradient are
            skipped. Or a list of dicts, as ``optimizer.param_groups``: each group that has a "max_norm" is
            clipped by its own norm, and the others together by `max_norm`.
        max_norm: the largest norm allowed; `inf` only measures.
        norm_type: order p of the norm: 2, 1, `inf`, `-inf`, 0 or any other number. Of a sparse gradient
            only the stored elements count.
        error_if_nonfinite: raise if the total norm is NaN or infinite. Synchronises.
        foreach: as in torch; used only where torch's own operations are.
        process_group: the ranks that hold different parts of the *plain* tensors (experts, hand-made
            shards). Without it plain tensors are treated as replicas. DTensors know their ranks.
        pp_group: the ranks that hold different parts of the model (pipeline stages).

    Returns:
        The total norm before clipping: 0-d float32 (float64 if any gradient is float64 or
        complex128), on the gradients' device. If no parameter has a gradient, 0.0 on the parameters' device.
        If all parameters are DTensors of one mesh and no group is given, a replicated DTensor, as in torch.

    Raises:
        RuntimeError: `error_if_nonfinite` is set and the norm is not finite. The message names the gradients
            with NaN or inf. Gradients are unchanged.
        TypeError, ValueError: an invalid argument. The message gives the position of the entry. Gradients
            are unchanged.

    Warns:
        GradkernWarning: no parameter has a gradient, or an optimizer has used these gradients already.

    Notes:
        Deterministic for any number of threads. A NaN in a gradient makes the norm and, as in torch, every
        gradient NaN. No host-device synchronisation, except for: `error_if_nonfinite`; `max_norm` as a tensor
        on a device; sparse gradients on a device; devices without a kernel and lists on several kinds of
        device, which use torch's operations.

    Equivalent to:
        ``torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)``
    """
    operation = "clip_grad_norm_"
    if (
        type(parameters) is list
        and type(max_norm) is type(norm_type) is float
        and max_norm >= 0
        and norm_type == norm_type
        and process_group is pp_group is None
        and observing.observer is None
        and parameters
        and isinstance(parameters[0], Tensor)
    ):
        # The usual call needs no conversion. After a backward pass no code is cached: each function that is
        # called on the way costs microseconds.
        arguments = (max_norm + 0.0, norm_type, bool(error_if_nonfinite))
        measured: Tensor = route.run(operation, parameters, arguments, foreach)
        return measured
    if param_groups.are_param_groups(parameters):
        return param_groups.clip(
            parameters, max_norm, norm_type, bool(error_if_nonfinite), RankGroups(process_group, pp_group)
        )
    params = as_list(operation, parameters)  # type: ignore[arg-type]  # no groups
    max_norm = as_limit(operation, "max_norm", max_norm)
    norm_type = as_order(operation, norm_type)
    groups = None if process_group is None and pp_group is None else (process_group, pp_group)
    arguments = (max_norm, norm_type, bool(error_if_nonfinite))
    total: Tensor = reported.run(operation, params, arguments, foreach, groups)
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
    """The norm of all `tensors`, as if concatenated into one vector.

    Args:
        tensors: the tensors to measure, usually gradients. Dtypes and shapes as in `clip_grad_norm_`.
        norm_type: order p of the norm, as in `clip_grad_norm_`.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach, process_group, pp_group: as in `clip_grad_norm_`.

    Returns:
        0-d float32 (float64 if any tensor is float64 or complex128), on the tensors' device.

    Raises:
        RuntimeError: `error_if_nonfinite` is set and the norm is not finite.
        TypeError, ValueError: an invalid argument. The message gives the position of the entry.

    Notes:
        Deterministic. Synchronises only where `clip_grad_norm_` does.

    Equivalent to:
        ``torch.nn.utils.get_total_norm(tensors, norm_type, error_if_nonfinite)``
    """
    operation = "get_total_norm"
    items = as_list(operation, tensors, "tensors")
    norm_type = as_order(operation, norm_type)
    groups = None if process_group is None and pp_group is None else (process_group, pp_group)
    total: Tensor = route.run(operation, items, (norm_type, bool(error_if_nonfinite)), foreach, groups)
    return total


def clip_grads_with_norm_(
    parameters: Parameters,
    max_norm: float,
    total_norm: Tensor | float,
    foreach: bool | None = None,
) -> None:
    """Scale gradients in place by ``max_norm / (total_norm + 1e-6)`` if that is below 1.

    With the result of `get_total_norm` the gradients are the same, bit for bit, as after `clip_grad_norm_`,
    if that result is finite. An infinite one makes gradients 0, as it does not tell how large the norm was.

    Args:
        parameters: as in `clip_grad_norm_`.
        max_norm: the largest norm allowed.
        total_norm: the norm of the gradients: a number, or a tensor with one element on any device.
        foreach: as in `clip_grad_norm_`.

    Raises:
        TypeError, ValueError: an invalid argument. Gradients are unchanged.

    Warns:
        GradkernWarning: as `clip_grad_norm_`.

    Notes:
        A negative `total_norm` on a device, which cannot be checked without a synchronisation, leaves the
        gradients unchanged. Synchronises if `total_norm` is on another device than the gradients, and where
        `clip_grad_norm_` does.

    Equivalent to:
        ``torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total_norm)``
    """
    operation = "clip_grads_with_norm_"
    params = as_list(operation, parameters)
    max_norm = as_limit(operation, "max_norm", max_norm)
    total_norm = as_norm(operation, total_norm)
    reported.run(operation, params, (max_norm, total_norm), foreach)


def clip_grad_value_(
    parameters: Parameters,
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    """Clamp every gradient element to ``[-clip_value, clip_value]``, in place, in one pass.

    Memory is written only where an element is outside of the interval. NaN stays NaN.

    Args:
        parameters: as in `clip_grad_norm_`, with real dtypes.
        clip_value: the limit, not negative.
        foreach: as in `clip_grad_norm_`.

    Raises:
        TypeError, ValueError: an invalid argument, a complex gradient, a sparse gradient that is not
            coalesced, or a DTensor gradient with a Partial placement. Gradients are unchanged.

    Warns:
        GradkernWarning: as `clip_grad_norm_`.

    Notes:
        Deterministic. Synchronises only where `clip_grad_norm_` does.

    Equivalent to:
        ``torch.nn.utils.clip_grad_value_(parameters, clip_value)``
    """
    operation = "clip_grad_value_"
    params = as_list(operation, parameters)
    clip_value = as_limit(operation, "clip_value", clip_value)
    reported.run(operation, params, (clip_value,), foreach)
