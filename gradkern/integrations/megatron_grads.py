"""`MainGrads`: statistics of the gradients that a Megatron-core optimizer steps with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradkern.clipping.measure import measure
from gradkern.params.stats import GradStats


class MainGrads:
    """The main gradients of a model's parameters.

    Args:
        optimizer: a Megatron-core optimizer.
        named: names and parameters of the model.
    """

    def __init__(self, optimizer: Any, named: Sequence[tuple[str, Tensor]]) -> None:
        self.parts = _parts(optimizer)
        self._named = named
        self._main = _main_params(self.parts, named)
        head = self.parts[0]
        self._name = (
            "decoupled_grad" if head.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 else "grad"
        )
        self._spreads = _spreads(self.parts, named)

    @torch.no_grad()
    def measured(self) -> GradStats:
        """Statistics of every parameter, over all ranks that have a part of it."""
        holders = [torch.empty(0) for _ in self._named]
        for spread in self._spreads:
            for row in spread.rows:
                param = self._named[row][1]
                main = self._main[id(param)]
                grad = None if main is None else getattr(main, self._name, None)
                if grad is not None:
                    holders[row] = grad.detach()
                    # Of a gradient that all tensor-parallel ranks have, that of the first rank counts.
                    if _is_split(param) or spread.tp_group.rank() == 0:
                        holders[row].grad = grad
        return self._titled(self._over_ranks(measure(holders)))

    def _over_ranks(self, stats: GradStats) -> GradStats:
        if not any(spread.groups for spread in self._spreads):
            return stats
        sums = torch.stack([stats.norm.double().square(), stats.nonfinite.double()])
        # MAX does not keep a NaN everywhere.
        largest = stats.max_abs.nan_to_num(nan=math.inf, posinf=math.inf)
        for spread in self._spreads:
            if spread.groups:
                own_sums, own_largest = sums[:, spread.rows], largest[spread.rows]
                for group in spread.groups:
                    dist.all_reduce(own_sums, group=group)
                    dist.all_reduce(own_largest, op=dist.ReduceOp.MAX, group=group)
                sums[:, spread.rows], largest[spread.rows] = own_sums, own_largest
        norm = sums[0].sqrt()
        rounded = norm.to(stats.norm.dtype)
        return dataclasses.replace(
            stats,
            norm=rounded,
            l2_norm=rounded,
            max_abs=largest,
            nonfinite=sums[1].long(),
            total_norm=torch.linalg.vector_norm(norm).to(stats.total_norm.dtype),
            decision_norm=None,
            _wide_norm=None,
        )

    def _titled(self, stats: GradStats) -> GradStats:
        numel = [param.numel() for _, param in self._named]
        for spread in self._spreads:
            for row in spread.rows:
                if _is_split(self._named[row][1]):
                    numel[row] *= spread.tp_group.size()
        return dataclasses.replace(
            stats,
            names=tuple(name for name, _ in self._named),
            numel=tuple(numel),
            has_grad=tuple(param.requires_grad for _, param in self._named),
            first=(),
            _identities=tuple(id(param) for _, param in self._named),
        )


@dataclasses.dataclass
class _Spread:
    """Rows of parameters that the same ranks have parts of.

    Args:
        rows: indices of the parameters.
        tp_group: the tensor-parallel ranks.
        groups: the tensor-parallel ranks and those among which the optimizer shards, where these are several.
    """

    rows: list[int]
    tp_group: Any
    groups: list[Any]


def _spreads(parts: Sequence[Any], named: Sequence[tuple[str, Tensor]]) -> list[_Spread]:
    """The rows of parameters that all ranks have, and of those of a rank's experts (expert parallelism)."""
    from megatron.core import parallel_state

    spreads = []
    for of_experts in (False, True):
        rows = [row for row, (_, param) in enumerate(named) if _is_of_expert(param) == of_experts]
        if rows:
            expert_group = parallel_state.get_expert_tensor_parallel_group
            tp_group = expert_group() if of_experts else parts[0].tp_group
            owners = [part for part in parts if _has_experts(part) == of_experts and _is_sharded(part)]
            groups = [tp_group, *(part.data_parallel_group for part in owners[:1])]
            spreads.append(_Spread(rows, tp_group, [group for group in groups if group.size() > 1]))
    return spreads


def _is_split(param: Tensor) -> bool:
    """Whether each tensor-parallel rank has a part of the parameter."""
    return bool(getattr(param, "tensor_model_parallel", False))


def _is_of_expert(param: Tensor) -> bool:
    return not getattr(param, "allreduce", True)


def _has_experts(part: Any) -> bool:
    return any(group.get("is_expert_parallel", False) for group in part.param_groups)


def _is_sharded(part: Any) -> bool:
    return hasattr(part, "model_param_group_index_map")


def _parts(optimizer: Any) -> list[Any]:
    """The optimizers of a chain, checked to be of classes whose gradients can be found."""
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
    return list(parts)


def _main_params(parts: Sequence[Any], named: Sequence[tuple[str, Any]]) -> dict[int, Any]:
    """By the id of a model's parameter, what the optimizer steps with: itself, its float32 copy, or this
    rank's shard of that (None where it has none)."""
    if any(getattr(param, "__fsdp_param__", False) for _, param in named):
        raise ValueError(
            "[monitored] model: Megatron's FSDP is not supported; its gradients are sharded by it"
        )
    sharded = [part for part in parts if _is_sharded(part)]
    found = {id(param): None if sharded else getattr(param, "main_param", param) for _, param in named}
    for part in sharded:
        groups = part.optimizer.param_groups
        for param, (group, place) in part.model_param_group_index_map.items():
            found[id(param)] = groups[group]["params"][place]
    return found
