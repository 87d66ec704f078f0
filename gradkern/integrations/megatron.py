"""Megatron-core: `monitored` records its optimizers, `patch_megatron` gives it gradkern's kernels.

Megatron-core takes its multi-tensor functions from Transformer Engine or Apex, or loops over the tensors.
`patch_megatron` replaces them by those of `gradkern.compat`, which have the same signatures:
``multi_tensor_applier``, ``multi_tensor_l2norm`` and ``multi_tensor_scale``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
from collections.abc import Iterator
from typing import Any

import torch

from gradkern import compat
from gradkern.integrations.ending import opened
from gradkern.integrations.megatron_grads import MainGrads
from gradkern.integrations.stand_in import follow_rates, stand_in
from gradkern.kernels.torch_scale import coefficient
from gradkern.monitor import GradMonitor
from gradkern.params.stats import GradStats


@contextlib.contextmanager
def monitored(
    optimizer: Any, model: Any, run_dir: str | os.PathLike[str] | None = None, **options: Any
) -> Iterator[GradMonitor]:
    """Record the gradients of a Megatron-core optimizer in a with-block. Norms are those before clipping.

    Args:
        optimizer: the result of `get_megatron_optimizer`. Enter the block on every rank.
        model: the model, wrapped or not, or the list of model chunks.
        run_dir, options: arguments of `GradMonitor`. With pipeline or expert parallelism the default of
            `all_ranks` is True, because each rank has parameters of its own. ``every=10`` measures and
            records every tenth step only.

    Yields:
        The `GradMonitor`, which is closed at the end of the block.

    Examples:
        >>> optimizer = get_megatron_optimizer(config, [model])
        >>> with monitored(optimizer, model, "runs/first") as monitor:
        ...     for batch in loader:
        ...         losses = forward_backward(...)
        ...         optimizer.step()
        ...         monitor.amend(monitor.step, loss=losses[0]["lm loss"])

    Raises:
        TypeError: an optimizer of another class than FP32Optimizer, Float16OptimizerWithFloat16Params,
            DistributedOptimizer, or ChainedOptimizer of these.
        ValueError: Megatron's FSDP.

    Notes:
        One row is recorded per optimizer step, for the main gradients without the loss scale. Norms are those
        over all tensor-parallel ranks and all shards of the distributed optimizer, which takes two small
        all-reduces for each of these groups. With expert parallelism each rank records its own experts. The
        total norm is the one that ``optimizer.step()`` returns.
        Weight norms, update ratios and histograms are not recorded, because `.grad` of the parameters is
        empty.
    """
    from megatron.core import parallel_state

    chunks = [_unwrapped(chunk) for chunk in (model if isinstance(model, (list, tuple)) else [model])]
    named = [
        (name if len(chunks) == 1 else f"{index}.{name}", param)
        for index, chunk in enumerate(chunks)
        for name, param in chunk.named_parameters()
    ]
    grads = MainGrads(optimizer, named)
    trained = [param for _, param in named if param.requires_grad]
    rates = stand_in(grads.parts[0].optimizer, trained, optimizer.param_groups)
    sizes = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
    )
    options.setdefault("all_ranks", max(sizes) > 1)
    options = {"update_every": 0, "histogram_every": 0, **options}
    given = chunks[0] if len(chunks) == 1 else named
    with opened(given, rates, run_dir, options) as monitor:
        recorder = _Recorder(optimizer, grads, monitor, rates)
        optimizer.prepare_grads, optimizer.step = recorder.prepare_grads, recorder.step
        try:
            yield monitor
        finally:
            del optimizer.prepare_grads, optimizer.step  # the class's own again


def _unwrapped(model: Any) -> Any:
    while isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module
    return model


class _Recorder:
    """Wraps the methods `prepare_grads` and `step` of an optimizer. `step` calls `prepare_grads`."""

    def __init__(
        self, optimizer: Any, grads: MainGrads, monitor: GradMonitor, rates: torch.optim.Optimizer | None
    ) -> None:
        self._optimizer, self._grads, self._monitor, self._rates = optimizer, grads, monitor, rates
        self._prepare, self._step = optimizer.prepare_grads, optimizer.step
        self._stats: GradStats | None = None

    def prepare_grads(self) -> bool:
        """The optimizer's `prepare_grads`. The main gradients are unscaled then, but not clipped."""
        found_inf: bool = self._prepare()
        if (self._monitor.step + 1) % self._monitor.every == 0:
            self._stats = self._grads.measured()
        return found_inf

    def step(self) -> Any:
        """The optimizer's `step`. The gradients are measured within it and recorded after it."""
        follow_rates(self._rates, self._optimizer.param_groups)
        result = self._step()
        stats, self._stats = self._stats, None
        if stats is not None:
            stats = _decided(stats, bool(result[0]), result[1], float(self._optimizer.config.clip_grad))
        self._monitor.record(stats)
        return result


def _decided(stats: GradStats, applied: bool, total: float | None, limit: float) -> GradStats:
    """The statistics with the total norm of the optimizer and the factor that it has applied."""
    if total:  # 0 or None where the optimizer has not measured it
        stats = dataclasses.replace(stats, total_norm=torch.full_like(stats.total_norm, total))
    decisive = stats.total_norm.double()
    return dataclasses.replace(
        stats,
        clip_coef=coefficient(decisive, limit) if limit > 0 else torch.ones_like(decisive),
        applied=True,
        threshold=limit if limit > 0 else math.inf,
        skip_step=torch.tensor(not applied, device=decisive.device),
    )


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
