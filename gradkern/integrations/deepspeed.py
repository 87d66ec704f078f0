"""`monitored`: record the gradients of a DeepSpeed engine (ZeRO stages 0 to 3), which clips by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradkern.clipping.measure import measure
from gradkern.integrations.ending import opened
from gradkern.integrations.stand_in import follow_rates, stand_in
from gradkern.kernels.torch_scale import coefficient
from gradkern.monitor import GradMonitor
from gradkern.monitor.models.combine import combined
from gradkern.params.stats import GradStats


@contextlib.contextmanager
def monitored(
    engine: Any, run_dir: str | os.PathLike[str] | None = None, **options: Any
) -> Iterator[GradMonitor]:
    """Record the gradients of a DeepSpeed engine in a with-block. Norms are those before clipping.

    Args:
        engine: the engine that `deepspeed.initialize` returned. Enter the block on every rank.
        run_dir, options: arguments of `GradMonitor`. ``every=10`` measures and records every tenth step only.

    Yields:
        The `GradMonitor`, which is closed at the end of the block.

    Examples:
        >>> engine, *_ = deepspeed.initialize(model=model, config=config)
        >>> with monitored(engine, "runs/first"):
        ...     for batch in loader:
        ...         loss = compute_loss(engine, batch)
        ...         engine.backward(loss)
        ...         engine.step()

    Notes:
        One row is recorded per optimizer step, under the engine's `global_steps`. Its total norm is
        ``engine.get_global_grad_norm()``, or the norm of all rows if the engine has none.

        Gradients are read with ``deepspeed.utils.safe_get_full_grad``. In stages 1 to 3 this is one
        collective per parameter, with one full gradient in memory at a time.

        The loss is the mean of the losses passed to ``engine.backward`` on this rank, or their sum with
        ``scale_wrt_gas=False``. A loss whose own ``backward()`` is called is not seen. Weight norms, update
        ratios and histograms are not recorded, because `.grad` of the parameters is empty or partial.
    """
    rates = _rates(engine)
    options = {"update_every": 0, "histogram_every": 0, **options}
    with opened(engine.module, rates, run_dir, options) as monitor:
        recorder = _Recorder(engine, monitor, rates)
        backward, step = engine.backward, engine.step
        engine.backward, engine.step = recorder.backward, recorder.step
        try:
            yield monitor
        finally:
            engine.backward, engine.step = backward, step


class _Recorder:
    """Wraps the methods `backward` and `step` of an engine."""

    def __init__(self, engine: Any, monitor: GradMonitor, rates: torch.optim.Optimizer | None) -> None:
        self._engine, self._monitor, self._rates = engine, monitor, rates
        self._backward, self._step = engine.backward, engine.step
        self._losses: list[Tensor] = []
        self._are_shares = False  # of the step's loss: divided by the number of micro-batches already

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The engine's `backward`; keeps the loss."""
        self._losses.append(loss.detach())
        self._are_shares = not kwargs.get("scale_wrt_gas", True)
        return self._backward(loss, *args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's `step`. The last one of an accumulation is measured before and recorded after it."""
        engine = self._engine
        managed = getattr(engine, "managed_gradient_accumulation", lambda: True)()
        if managed and not engine.is_gradient_accumulation_boundary():
            return self._step(*args, **kwargs)
        due = (engine.global_steps + 1) % self._monitor.every == 0
        stats = _measured(engine) if due else None
        follow_rates(self._rates, engine.optimizer.param_groups)  # a scheduler changes them within the step
        result = self._step(*args, **kwargs)
        self._monitor.record(
            None if stats is None else _decided(engine, stats), loss=self._loss(), step=engine.global_steps
        )
        return result

    def _loss(self) -> Tensor | None:
        losses, self._losses = self._losses, []
        if not losses:
            return None
        return torch.stack(losses).sum() if self._are_shares else torch.stack(losses).mean()


@torch.no_grad()
def _measured(engine: Any) -> GradStats:
    """The statistics of all full gradients without the loss scale, measured one at a time."""
    from deepspeed.utils import safe_get_full_grad

    inv_scale = 1.0 / _loss_scale(engine.optimizer)
    parts = []
    for name, param in engine.module.named_parameters():
        grad = safe_get_full_grad(param) if param.requires_grad else None
        holder = torch.empty(0) if grad is None else grad.detach()
        if grad is not None:
            holder.grad = grad
        part = measure([holder], inv_scale=inv_scale)
        size = int(getattr(param, "ds_numel", param.numel()))
        parts.append(dataclasses.replace(part, names=(name,), numel=(size,), _identities=(id(param),)))
    return combined(parts)


def _loss_scale(optimizer: Any) -> float:
    holder = getattr(optimizer, "loss_scale_config", optimizer)
    return float(getattr(holder, "cur_scale", 1.0))


def _decided(engine: Any, stats: GradStats) -> GradStats:
    """The statistics with the engine's total norm, and the factor that it has multiplied the gradients by."""
    applied = engine.was_step_applied()
    total = engine.get_global_grad_norm() if applied else None  # that of an earlier step otherwise
    if total is not None:
        total = torch.as_tensor(total, dtype=stats.total_norm.dtype, device=stats.total_norm.device)
        stats = dataclasses.replace(stats, total_norm=total)
    limit = float(engine.gradient_clipping())
    decisive = stats.total_norm.double()
    factor = coefficient(decisive, limit) if limit > 0 else torch.ones_like(decisive)
    return dataclasses.replace(
        stats,
        clip_coef=factor,
        applied=True,
        threshold=limit if limit > 0 else math.inf,
        skip_step=torch.tensor(not applied, device=decisive.device),
    )


def _rates(engine: Any) -> torch.optim.Optimizer | None:
    """A stand-in for the engine's own optimizer, which steps flat pieces of the parameters."""
    inner = engine.optimizer
    while not isinstance(inner, torch.optim.Optimizer) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    return stand_in(inner, [p for p in engine.module.parameters() if p.requires_grad], inner.param_groups)
