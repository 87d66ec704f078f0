"""The checks and the bookkeeping of `GradScaler.unscale_`, without its pass over the gradients.

For each optimizer torch.amp keeps a stage and the non-finite flags that `scaler.step` and `scaler.update`
read (`_per_optimizer_states`). The functions here set them as `unscale_` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState


def is_enabled(scaler: GradScaler) -> bool:
    """``scaler.is_enabled()``, with a check that it is a scaler.

    Raises:
        TypeError: it is not a scaler. Any object with the method `is_enabled` is accepted; FSDP has a scaler
            of its own.
    """
    if isinstance(scaler, type) or not callable(getattr(scaler, "is_enabled", None)):
        got = f"the class {scaler.__name__}" if isinstance(scaler, type) else type(scaler).__name__
        raise TypeError(f"[GradClipper.clip_] scaler: expected a torch.amp.GradScaler, got {got}")
    return bool(scaler.is_enabled())


def begin(
    scaler: GradScaler,
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    names: Sequence[str],
) -> float | Tensor | None:
    """Make the checks of `unscale_`.

    Returns:
        The factor that unscales gradients: a number if the scale is on the CPU, else a 0-d float64 tensor on
        its device. None if the scaler is disabled.

    Raises:
        RuntimeError: since the last `scaler.update()` gradients have been unscaled or the optimizer has
            stepped.
        ValueError: a gradient is float16, or the clipper and the optimizer have different parameters.
    """
    if not scaler.is_enabled():
        return None
    scaler._check_scale_growth_tracker("unscale_")
    stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
    if stage is OptState.UNSCALED:
        raise RuntimeError(
            "[GradClipper.clip_] unscale_() has already been called on this optimizer since the last "
            "update()."
        )
    if stage is OptState.STEPPED:
        raise RuntimeError("[GradClipper.clip_] unscale_() is being called after step().")
    _check_same_parameters(optimizer, params, names)
    if not _allows_fp16(scaler):
        types = [None if (g := p.grad) is None else g.dtype for p in params]
        if torch.float16 in types:
            index = types.index(torch.float16)
            where = f"[GradClipper.clip_] params[{index}] ('{names[index]}')"
            raise ValueError(f"{where}: Attempting to unscale FP16 gradients.")
    scale: Tensor = scaler._scale  # type: ignore[assignment]
    inverse = scale.double().reciprocal().float().double()  # rounded as torch rounds it
    return float(inverse) if inverse.device.type == "cpu" else inverse


def record(
    scaler: GradScaler, optimizer: torch.optim.Optimizer, params: Sequence[Tensor], bad: Tensor
) -> None:
    """Set the flags (one on every device with gradients) and the stage of the scaler, as `unscale_` does."""
    found = bad.to(torch.float32)
    found = _over_sharded_ranks(scaler, found)
    devices = {g.device for p in params if (g := p.grad) is not None} or {found.device}
    state = scaler._per_optimizer_states[id(optimizer)]
    state["found_inf_per_device"] = {device: found.to(device).clone() for device in devices}
    state["stage"] = OptState.UNSCALED


def _allows_fp16(scaler: GradScaler) -> bool:
    """Whether float16 gradients are allowed, as FSDP's ShardedGradScaler does."""
    return hasattr(scaler, "process_group")


def _over_sharded_ranks(scaler: GradScaler, found: Tensor) -> Tensor:
    """The maximum over the ranks of a ShardedGradScaler, which skip together."""
    group = getattr(scaler, "process_group", None)
    if group is None:
        return found
    import torch.distributed as dist

    found = found.clone()
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return found


def _check_same_parameters(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Check that the gradients that the clipper unscales are those that the optimizer uses."""
    listed = {i for group in optimizer.param_groups for i in map(id, group["params"])}
    if listed == set(map(id, params)):
        return
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    own = {id(p): name for p, name in zip(params, names) if p.grad is not None}
    extra = next((name for key, name in own.items() if key not in stepped), None)
    if extra is not None:
        raise ValueError(
            f"[GradClipper.clip_] optimizer: it does not have '{extra}', which has a gradient; give clipper "
            "and optimizer the same parameters"
        )
    if len(stepped) != len(own):
        raise ValueError(
            f"[GradClipper.clip_] optimizer: {len(stepped)} of its parameters have gradients, but only "
            f"{len(own)} of the clipper's: the others would keep the loss scale; give clipper and optimizer "
            "the same parameters"
        )
