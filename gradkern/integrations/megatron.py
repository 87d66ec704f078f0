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
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradkern import compat
from gradkern.clipping.measure import measure
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
        run_dir, options: arguments of `GradMonitor`. With pipeline parallelism the default of `all_ranks` is
            True, because each stage has only its own parameters. ``every=10`` measures and records every
            tenth step only.

    Yields:
        The `GradMonitor`, which is closed at the end of the block.

    Example:
        >>> optimizer = get_megatron_optimizer(config, [model])
        >>> with monitored(optimizer, model, "runs/first") as monitor:
        ...     for batch in loader:
        ...         losses = forward_backward(...)
        ...         optimizer.step()
        ...         monitor.amend(monitor.step, loss=losses[0]["lm loss"])

    Raises:
        TypeError: an optimizer of another class than FP32Optimizer, Float16OptimizerWithFloat16Params,
            DistributedOptimizer, or ChainedOptimizer of these.
        ValueError: expert parallelism, or Megatron's FSDP.

    Notes:
        One row is recorded per optimizer step, for the main gradients without the loss scale. Norms are those
        over all tensor-parallel ranks and all shards of the distributed optimizer, which takes two small
        all-reduces for each of these groups. The total norm is the one that ``optimizer.step()`` returns.
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
    rows = _Rows(optimizer, named)
    trained = [param for _, param in named if param.requires_grad]
    rates = stand_in(rows.parts[0].optimizer, trained, optimizer.param_groups)
    options.setdefault("all_ranks", parallel_state.get_pipeline_model_parallel_world_size() > 1)
    options = {"update_every": 0, "histogram_every": 0, **options}
    given = chunks[0] if len(chunks) == 1 else named
    with GradMonitor(given, rates, run_dir, **options) as monitor:
        recorder = _Recorder(optimizer, rows, monitor, rates)
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
        self, optimizer: Any, rows: _Rows, monitor: GradMonitor, rates: torch.optim.Optimizer | None
    ) -> None:
        self._optimizer, self._rows, self._monitor, self._rates = optimizer, rows, monitor, rates
        self._prepare, self._step = optimizer.prepare_grads, optimizer.step
        self._stats: GradStats | None = None

    def prepare_grads(self) -> bool:
        """The optimizer's `prepare_grads`. The main gradients are unscaled then, but not clipped."""
        found_inf: bool = self._prepare()
        if (self._monitor.step + 1) % self._monitor.every == 0:
            self._stats = self._rows.measured()
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


class _Rows:
    """The main gradients of a model's parameters.

    Args:
        optimizer: a Megatron-core optimizer.
        named: names and parameters of the model.
    """

    def __init__(self, optimizer: Any, named: Sequence[tuple[str, Tensor]]) -> None:
        self.parts = _parts(optimizer)
        self._named = named
        self._main = {id(param): param for _, param in named}
        for part in self.parts:
            self._main.update(_main_params(part, named))
        head = self.parts[0]
        self._name = (
            "decoupled_grad" if head.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 else "grad"
        )
        self._tp_group = head.tp_group
        shards = [head.data_parallel_group] if hasattr(head, "model_param_group_index_map") else []
        self._groups = [group for group in (self._tp_group, *shards) if group.size() > 1]

    @torch.no_grad()
    def measured(self) -> GradStats:
        """Statistics of every parameter, over all ranks that have a part of it."""
        holders = []
        for _, param in self._named:
            main = self._main[id(param)]
            grad = None if main is None else getattr(main, self._name, None)
            holder = torch.empty(0) if grad is None else grad.detach()
            if grad is not None and self._counts_here(param):
                holder.grad = grad
            holders.append(holder)
        stats = measure(holders)
        return self._over_ranks(stats) if self._groups else self._titled(stats)

    def _counts_here(self, param: Any) -> bool:
        """Whether no earlier tensor-parallel rank has the same gradient."""
        return getattr(param, "tensor_model_parallel", False) or self._tp_group.rank() == 0

    def _over_ranks(self, stats: GradStats) -> GradStats:
        sums = torch.stack([stats.norm.double().square(), stats.nonfinite.double()])
        largest = stats.max_abs.nan_to_num(
            nan=math.inf, posinf=math.inf
        )  # MAX does not keep a NaN everywhere
        for group in self._groups:
            dist.all_reduce(sums, group=group)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        norm = sums[0].sqrt()
        return self._titled(
            dataclasses.replace(
                stats,
                norm=(rounded := norm.to(stats.norm.dtype)),
                l2_norm=rounded,
                max_abs=largest,
                nonfinite=sums[1].long(),
                total_norm=torch.linalg.vector_norm(norm).to(stats.total_norm.dtype),
                decision_norm=None,
                _wide_norm=None,
            )
        )

    def _titled(self, stats: GradStats) -> GradStats:
        size = self._tp_group.size()
        parallel = [getattr(param, "tensor_model_parallel", False) for _, param in self._named]
        return dataclasses.replace(
            stats,
            names=tuple(name for name, _ in self._named),
            numel=tuple(p.numel() * (size if spread else 1) for (_, p), spread in zip(self._named, parallel)),
            has_grad=tuple(param.requires_grad for _, param in self._named),
            first=(),
            _identities=tuple(id(param) for _, param in self._named),
        )


def _parts(optimizer: Any) -> list[Any]:
    """The optimizers of a chain, checked to be of classes whose gradients can be found."""
    from megatron.core import parallel_state
    from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer
    from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer

    parts = optimizer.chained_optimizers if type(optimizer) is ChainedOptimizer else [optimizer]
    known = (FP32Optimizer, Float16OptimizerWithFloat16Params, DistributedOptimizer)
    for part in parts:
        if not isinstance(part, known):
            raise TypeError(
                "[monitored] optimizer: expected what get_megatron_optimizer returns (FP32Optimizer, "
                "Float16OptimizerWithFloat16Params, DistributedOptimizer, or a ChainedOptimizer of these), "
                f"got {type(part).__name__}"
            )
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        raise ValueError(
            "[monitored] optimizer: expert parallelism is not supported, because ranks have different "
            "experts with the same name; record what optimizer.step() returns with "
            "GradMonitor.record(extra={'total': total})"
        )
    return list(parts)


def _main_params(part: Any, named: Sequence[tuple[str, Any]]) -> dict[int, Any]:
    """By the id of a model's parameter, what the optimizer steps with: itself, its float32 copy, or this
    rank's shard of that (None where it has none)."""
    if any(getattr(param, "__fsdp_param__", False) for _, param in named):
        raise ValueError(
            "[monitored] model: Megatron's FSDP is not supported; its gradients are sharded by it"
        )
    places = getattr(part, "model_param_group_index_map", None)
    if places is None:
        return {id(param): getattr(param, "main_param", param) for _, param in named}
    groups = part.optimizer.param_groups
    return {
        id(param): groups[places[param][0]]["params"][places[param][1]] if param in places else None
        for _, param in named
    }


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
