"""`GradClipper`: clipping for a training loop, with statistics and a policy for NaN and inf."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args

import torch
from torch import Tensor

from gradkern.clipping import grad_scaler, ladder, verdict
from gradkern.clipping.checks import (
    check_folded,
    check_groups,
    check_one_way,
    check_optimizer,
    check_policies,
)
from gradkern.clipping.deciding import Facts, Group, NormGroups, as_policy
from gradkern.clipping.elements import ElementParts
from gradkern.clipping.fused_step import OptimizerHandover
from gradkern.clipping.ladder import RankGroups
from gradkern.clipping.late_errors import LateErrors
from gradkern.clipping.one_call import OneCall
from gradkern.clipping.policies import Decision, GlobalNorm, Policy
from gradkern.clipping.selection import Selector, check_no_overlap, members_of
from gradkern.clipping.verdict import Verdict
from gradkern.kernels.backend import C
from gradkern.kernels.measured import Measured
from gradkern.params.arguments import as_limit, as_number, check_group, check_selections, innermost
from gradkern.params.misuse import Misuse
from gradkern.params.names import NamedParameters
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats, GroupStats

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.distributed import ProcessGroup

OnNonfinite = Literal["propagate", "raise", "raise_later", "zero", "skip"]


class GradClipper:
    """Clips gradients by their global norm, by a policy, or group by group, and returns what one read tells.

    Args:
        params: a Module (looked at again when its parameters change), (name, Parameter) pairs, or
            Parameters.
        max_norm: largest norm to leave; `inf` only measures. Or else:
        policy: one of `gradkern.policies`: ``policy=ZClip()``.
        groups: ``{name: (selector, policy)}``: groups that are measured and decided on by themselves. A
            selector is a glob over names (``"*.bias"``), a function of name and parameter, an optimizer, a
            module or parameters; the first that matches wins, and every parameter is in one group. In place
            of a policy stands a number for the limit of the group's norm, or None: measured, never scaled.
        norm_type: order of the norm that is clipped, as in `clip_grad_norm_`.
        count_zeros: count zero elements too (`stats.zeros`), of sparse gradients the stored ones; costs a
            little.
        on_nonfinite: what happens when a gradient holds inf or NaN (decided by the count of such
            elements, not by the norm, which can overflow for finite gradients):

            - "propagate": as torch: the norm is inf or NaN and the gradients become 0 or NaN.
            - "raise": RuntimeError that names the parameters; gradients are untouched. Synchronises.
            - "raise_later": the step is skipped, as by "skip". The same error is raised by the next
              `clip_` that finds the step completed (on a CPU: the next one), or by `check`. No
              synchronisation.
            - "zero": all gradients become zero. An optimizer with momentum or weight decay still
              moves the parameters.
            - "skip": gradients are untouched and `stats.skip_step` is set on the device. With
              `optimizer` (a fused one), it skips the step itself, without a synchronisation;
              otherwise read ``stats.skip_step``.
        optimizer: a fused optimizer (``torch.optim.AdamW(..., fused=True)``): told to skip the step,
            and for `fold`. Of several clippers of one optimizer each can have the step skipped.
        fold: leave the gradients as they are and let `optimizer` apply the coefficient, through its
            `grad_scale`: no scale pass here. Gradients are then clipped by ``optimizer.step()``, which
            writes the quotients back. Not with on_nonfinite="zero".
        process_group: ranks that hold different parts of the *plain* parameters (experts, shards made
            by hand). DTensors know their ranks; other plain parameters are taken to be replicas.
        in_process_group: which plain parameters, by canonical name, are different parts in
            `process_group`; default: all.
        pp_group: ranks that hold different parts of the model: pipeline stages.
        counted_elsewhere: which parameters, by canonical name, another rank counts: on the last stage,
            an embedding that is tied to the first stage's. They are clipped here all the same; their
            rows are 0 here.

    Example:
        >>> clipper = GradClipper(model, max_norm=1.0)
        >>> loss.backward()
        >>> stats = clipper.clip_()
        >>> optimizer.step()

    Raises:
        TypeError, ValueError: bad arguments; or the ranks of a mesh list different parameters.

    Notes:
        With an optimizer, groups or DTensors it is not copied and not pickled (TypeError), nor is what holds
        it: build another for the copied model.

        With DTensors, building it is a collective over their meshes (16 bytes a mesh dimension): the
        ranks agree on the rows that `clip_` sends.
    """

    def __init__(
        self,
        params: NamedParameters,
        max_norm: float | None = None,
        *,
        policy: Policy | None = None,
        groups: Mapping[str, tuple[Selector, Policy | float | None]] | None = None,
        norm_type: float = 2.0,
        count_zeros: bool = False,
        on_nonfinite: OnNonfinite = "propagate",
        optimizer: torch.optim.Optimizer | None = None,
        fold: bool = False,
        process_group: ProcessGroup | None = None,
        in_process_group: Callable[[str], bool] | None = None,
        pp_group: ProcessGroup | None = None,
        counted_elsewhere: Callable[[str], bool] | None = None,
    ) -> None:
        self._choose_policies(max_norm, policy, groups)
        self.norm_type = as_number("GradClipper", "norm_type", norm_type)
        self._count_zeros = bool(count_zeros)
        self._fold = bool(fold)
        self.on_nonfinite = on_nonfinite
        self._late = LateErrors()
        check_group("GradClipper", "process_group", process_group)
        check_group("GradClipper", "pp_group", pp_group)
        check_selections("GradClipper", process_group, in_process_group, counted_elsewhere)
        check_policies(list(self._policies.items()), self._fold)
        self._plan = ParameterPlan("GradClipper", params)
        self._misuse = Misuse("GradClipper.clip_", "clip")
        if not self._plan.params and process_group is None and pp_group is None:
            raise ValueError("[GradClipper] params: expected at least one parameter, got none")
        self._use_optimizer(optimizer)
        inside = None if in_process_group is None else (lambda i: in_process_group(self._plan.names[i]))
        elsewhere = None if counted_elsewhere is None else (lambda i: counted_elsewhere(self._plan.names[i]))
        self._ranks = RankGroups(process_group, pp_group, inside, elsewhere)
        self._cache = ladder.Cache()
        self._facts = Facts(self._policies, self._selectors is not None)
        self._one_call: tuple[Any, OneCall | None] = (None, None)
        self._elements: tuple[Any, ElementParts | None] = (None, None)
        self._norm_groups: NormGroups | None = None
        self._grouped: tuple[str, ...] | None = None
        self._form_groups()
        plan, grouped = self._plan, self._norm_groups
        named: dict[str, list[int]] = (
            {} if grouped is None else {group.name: group.rows for group in grouped.groups}
        )
        ladder.agree("GradClipper", plan.params, plan.names, self.norm_type, self._ranks, self._cache, named)

    def _choose_policies(self, max_norm: Any, policy: Any, groups: Any) -> None:
        check_one_way(max_norm, policy, groups)
        if groups is None:
            given = max_norm if policy is None else policy
            if policy is None and not isinstance(max_norm, Policy):
                given = GlobalNorm(as_limit("GradClipper", "max_norm", max_norm))
            self._policies: dict[str, Policy | None] = {"": as_policy("GradClipper", "policy", given)}
            self._selectors: dict[str, Any] | None = None
        else:
            check_groups(groups)
            self._policies = {
                name: as_policy("GradClipper", f"groups['{name}']", given)
                for name, (_, given) in groups.items()
            }
            self._selectors = {name: selector for name, (selector, _) in groups.items()}
        #: The one for all parameters; None with groups.
        self._policy = self._policies[""] if groups is None else None
        self._global = self._policy if type(self._policy) is GlobalNorm else None

    def _use_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        may_skip = any(p is not None and p.may_skip for p in self._policies.values())
        check_optimizer(optimizer, self.on_nonfinite, self._fold, may_skip)
        self._optimizer = optimizer
        self._handover = None
        self._folded: tuple[Any, Any] = (None, None)
        if optimizer is None:
            return
        if self._fold:
            self._check_folded("GradClipper", optimizer)
        self._handover = OptimizerHandover(innermost(optimizer), self, self._plan.identities)

    def _form_groups(self) -> None:
        """Again where the module has other parameters now."""
        names = self._plan.names
        if self._selectors is None or self._grouped is names:
            return
        members = members_of(self._selectors, names, self._plan.params, self._ranks.pp_group is not None)
        groups = [Group(name, rows, self._policies[name]) for name, rows in members.items()]
        self._norm_groups, self._grouped = NormGroups(groups, names), names
        self._unchecked = True

    @property
    def max_norm(self) -> float:
        """Largest norm to leave; can be set between steps. Of a clipper with a policy or groups: see
        `policies`."""
        return self._global_policy().max_norm

    @max_norm.setter
    def max_norm(self, value: float) -> None:
        self._global_policy().max_norm = as_limit("GradClipper", "max_norm", value)

    def _global_policy(self) -> GlobalNorm:
        if self._global is None:
            raise AttributeError(
                "[GradClipper] max_norm: expected a clipper that was built with max_norm; the limits of this "
                "one are those of clipper.policies"
            )
        return self._global

    @property
    def policies(self) -> Mapping[str, Policy | None]:
        """The policy of each group by its name; of a clipper without groups, under ""."""
        return MappingProxyType(self._policies)

    @property
    def on_nonfinite(self) -> OnNonfinite:
        """What happens when a gradient holds inf or NaN; can be set between steps."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: OnNonfinite) -> None:
        if value not in get_args(OnNonfinite):
            policies = ", ".join(get_args(OnNonfinite))
            raise ValueError(f"[GradClipper] on_nonfinite: expected one of {policies}, got {value!r}")
        if self._fold and value == "zero":
            raise ValueError(
                "[GradClipper] fold: expected on_nonfinite other than 'zero' (no division makes NaN zero), "
                "got 'zero'"
            )
        self._on_nonfinite: OnNonfinite = value
        #: What happens to the gradients.
        self._treatment = "skip" if value == "raise_later" else value

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the parameters, in the order of the statistics' rows."""
        return self._plan.names

    def clip_(
        self, *, scaler: GradScaler | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> GradStats:
        """Clip the gradients in place.

        Args:
            scaler: a `torch.amp.GradScaler`, between ``scaler.scale(loss).backward()`` and
                ``scaler.step(optimizer)``: gradients are unscaled, checked and clipped with one read
                and one write, and the scaler is left as ``scaler.unscale_(optimizer)`` leaves it.
                Statistics are of the unscaled gradients. Where they hold inf or NaN, the scaler skips
                the step, and they are unscaled only (set to zero with "zero"). Where nothing has a
                gradient, ``scaler.step`` goes on to the optimizer (torch: an AssertionError), because
                other ranks may have some.
            optimizer: the optimizer that is stepped by `scaler`; default: the clipper's. Without a
                scaler it is of no use, and ignored.

        Returns:
            GradStats from before clipping, with `clip_coef` (and `skip_step` for "skip" and with a scaler);
            its tensors stay on the gradients' device. Over ranks, rows of DTensors and totals are the
            same on every rank of a mesh; rows of plain tensors and `has_grad` are this rank's.

        Raises:
            RuntimeError: on_nonfinite="raise", and a gradient holds inf or NaN; names the
                parameters. With "raise_later" a gradient of an earlier step did. Or the scaler has
                unscaled or stepped since its last update, as `unscale_` raises. Gradients are unchanged.
            TypeError: `scaler` is no GradScaler.
            ValueError: with `scaler`: a float16 gradient. With `scaler` or `fold`: the optimizer's
                parameters are not the clipper's (any more). Gradients are unchanged.

        Notes:
            No host-device synchronisation, except for "raise". Where torch.distributed is initialised,
            "raise_later" waits for the step before, so that all ranks raise at the same call. In a CUDA graph
            it raises in `check` only, as a replay runs no Python.
        """
        self._late.raise_known()
        params = self._plan.current()
        if scaler is not None and not grad_scaler.is_enabled(scaler):
            scaler = None  # GradScaler(enabled=False) scales nothing and skips nothing
        if self._handover is not None:
            self._handover.clear()
            self._handover.check_fused("GradClipper.clip_")
            if self._fold:
                self._check_folded("GradClipper.clip_", self._handover.optimizer)
        self._misuse.check_used(params)
        plain = not (self._fold or self._ranks.named or self._cache.plan is not None)
        if self._global is not None and params and params[0].is_cuda:
            # A graph that is captured reads the limit from the device: setting it reaches the replays.
            self._global.limit_on(params[0].device)
            plain = plain and not torch.cuda.is_current_stream_capturing()
        if self._global is not None and scaler is None and plain:
            columns = C.clip(
                params,
                self._global.max_norm,
                self.norm_type,
                self._treatment,
                self._count_zeros,
                self._plan.names,
            )
            if columns is not None:
                measured = ladder.on_home_device(Measured(**columns), params)
                return self._clipped_in_one_call(measured, measured.skip_step, self._global.max_norm)
        elif scaler is None and plain and params[0].is_cpu:
            stats = self._clip_by_policies(params)
            if stats is not None:
                return stats
        return self._clip_in_steps(params, scaler, optimizer)

    @torch.no_grad()
    def _clip_by_policies(self, params: list[Tensor]) -> GradStats | None:
        """All policies and groups in one call, where the extension knows them."""
        self._form_groups()
        self._check_overlap(params)
        names = self._plan.names
        if self._one_call[0] is not names:
            self._one_call = names, OneCall(self._policies, self._norm_groups, names)
        call = self._one_call[1]
        assert call is not None
        done = call.clip(params, self.norm_type, self._treatment, self._count_zeros, names)
        if done is None:
            return None
        skip = done.skip_step if self._treatment == "skip" or call.may_skip else None
        stats = self._clipped_in_one_call(
            done.measured, skip, done.threshold, _factor=done.factor, _groups=done.groups
        )
        if not self._element_parts() or bool(done.skip_step):
            return stats
        factor = self._change_elements(
            params, stats, done.measured.clip_coef if done.factor is None else done.factor
        )
        return stats.with_factor(factor)

    def _clipped_in_one_call(
        self, measured: Measured, skip: Tensor | None, threshold: float | Tensor | None, **further: Any
    ) -> GradStats:
        if self._handover is not None and skip is not None:
            self._handover.give(None, skip)
        if self._on_nonfinite == "raise_later":
            bad = skip if skip is not None and self._global is not None else measured.bad()
            self._late.add(bad, measured.nonfinite, self._plan.names)
        return self._statistics(
            measured,
            clip_coef=measured.clip_coef,
            skip_step=skip,
            threshold=threshold,
            policy=self._facts(self._on_nonfinite),
            applied=True,
            **further,
        )

    def _statistics(self, measured: Measured, **further: Any) -> GradStats:
        plan = self._plan
        numel = plan.sizes(measured.numel)
        if not self._ranks.named and self._cache.plan is None:  # else other ranks may have some
            self._misuse.check_present(plan.params, measured.has_grad)
        return GradStats.of(
            measured, plan.names, numel, plan.first, plan.identities, self.norm_type, **further
        )

    @torch.no_grad()
    def _clip_in_steps(
        self, params: list[Tensor], scaler: GradScaler | None, optimizer: torch.optim.Optimizer | None
    ) -> GradStats:
        """Measure, decide, apply: with a policy, groups, a scaler, a fold, ranks or torch's operations."""
        self._form_groups()
        inverse = self._begin_unscaling(params, scaler, optimizer)
        measured = self._measure(params, 1.0 if inverse is None else inverse)
        stats = self._statistics(measured, inv_scale=1.0 if inverse is None else inverse)
        decision, groups = self._decide(stats, measured, params)
        # A scaler skips the step by itself: nothing but unscaling is left to do then.
        alone = inverse is not None and self.on_nonfinite == "propagate"
        judged = verdict.judge(decision, measured.bad(), "skip" if alone else self._treatment)
        if self.on_nonfinite == "raise":
            if scaler is not None and bool(judged.bad):  # update() lowers the scale
                grad_scaler.record(scaler, self._stepped(optimizer), params, judged.bad)
            verdict.raise_if_bad(measured, judged, self._plan.names, "GradClipper.clip_")
        factor = self._carry_out(params, stats, judged, inverse, scaler)
        if self.on_nonfinite == "raise_later":
            self._late.add(judged.bad, measured.nonfinite, self._plan.names)
        if scaler is not None:
            found = judged.bad if judged.skip is None else judged.skip | judged.bad
            grad_scaler.record(scaler, self._stepped(optimizer), params, found)
        return dataclasses.replace(
            stats,
            clip_coef=verdict.smallest(factor).to(measured.total_norm.dtype),
            # A scaler skips by itself.
            skip_step=judged.bad if judged.skip is None and inverse is not None else judged.skip,
            threshold=decision.threshold,
            policy=self._facts(self._on_nonfinite),
            applied=not self._fold,
            _factor=factor if factor.ndim else None,
            _groups=groups,
        )

    def _measure(self, params: list[Tensor], scale: float | Tensor) -> Measured:
        members: list[list[int]] | None = None
        if self._norm_groups is not None:
            members = self._norm_groups.members
        elif self._policy is not None and self._policy.needs_rows:
            members = []
        return ladder.measure(
            "GradClipper.clip_",
            params,
            self._plan.names,
            self.norm_type,
            self._count_zeros,
            scale,
            self._ranks,
            self._cache,
            members,
        )

    def _decide(
        self, stats: GradStats, measured: Measured, params: list[Tensor]
    ) -> tuple[Decision, dict[str, GroupStats] | None]:
        grouped = self._norm_groups
        if grouped is None:
            assert self._policy is not None
            return self._policy.decide(stats), None
        self._check_overlap(params)
        return grouped.decide(stats, measured)

    def _check_overlap(self, params: list[Tensor]) -> None:
        """Once for a list of parameters, when they have gradients."""
        if self._norm_groups is not None and self._unchecked:
            rows = {group.name: group.rows for group in self._norm_groups.groups}
            check_no_overlap(rows, params, self._plan.names)
            self._unchecked = False

    def _carry_out(
        self,
        params: list[Tensor],
        stats: GradStats,
        judged: Verdict,
        inverse: float | Tensor | None,
        scaler: GradScaler | None,
    ) -> Tensor:
        """Scale, or let the optimizer do it.

        Returns:
            What gradients were multiplied by besides `inverse`: 0-d or [N].
        """
        factor = judged.factor if inverse is None else judged.factor * inverse
        if not self._fold:
            verdict.apply(params, factor, judged.zero, self._cache.held)
            if self._handover is not None and scaler is None and judged.skip is not None:
                self._handover.give(None, judged.skip)
            skips = judged.skip is not None and judged.skip.is_cpu and bool(judged.skip)
            if skips or not self._element_parts():
                return judged.factor
            return self._change_elements(params, stats, judged.factor)
        assert self._handover is not None
        if factor.ndim:
            raise ValueError(
                "[GradClipper.clip_] fold: expected a policy with one factor for all, got one a row"
            )
        divisor, factor = verdict.split_for_fold(factor)
        verdict.apply(params, factor, None, self._cache.held)
        self._handover.give(divisor, torch.zeros_like(judged.bad) if judged.skip is None else judged.skip)
        return judged.factor

    def _element_parts(self) -> ElementParts:
        names, parts = self._plan.names, self._elements[1]
        if parts is None or self._elements[0] is not names:
            grouped = self._norm_groups
            whole: list[tuple[Policy | None, Sequence[int]]] = [(self._policy, range(len(names)))]
            listed = whole if grouped is None else [(g.policy, g.rows) for g in grouped.groups]
            parts = ElementParts(listed, names, self._plan.first)
            self._elements = names, parts
        return parts

    def _change_elements(self, params: list[Tensor], stats: GradStats, factor: Tensor) -> Tensor:
        """[N]: `factor`, and what element-wise policies have done to the norms."""
        names, held = self._plan.names, self._cache.held

        def l2_norm() -> Tensor:
            return ladder.measure(
                "GradClipper.clip_", params, names, self.norm_type, False, 1.0, self._ranks, self._cache
            ).l2_norm

        return self._element_parts().apply_(params, held, stats, factor, l2_norm)

    def check(self) -> None:
        """Wait for the steps so far, and raise what on_nonfinite="raise_later" has not raised yet.

        For the end of training, before a checkpoint, and after the replay of a CUDA graph.

        Raises:
            RuntimeError: a gradient held inf or NaN; names the parameters.
        """
        self._late.raise_all()

    def state_dict(self) -> dict[str, Any]:
        """What the policies remember from step to step, by group."""
        return {name: {} if p is None else p.state_dict() for name, p in self._policies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is of other groups, or of other policies.
        """
        if set(state) != set(self._policies):
            raise ValueError(
                f"[GradClipper.load_state_dict] state: expected groups {sorted(self._policies)}, got "
                f"{sorted(state)}"
            )
        for name, policy in self._policies.items():
            if policy is not None:
                policy.load_state_dict(state[name])

    def _stepped(self, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
        own = self._optimizer
        if optimizer is None and own is None:
            raise ValueError(
                "[GradClipper.clip_] optimizer: expected the optimizer that scaler steps, got None"
            )
        if optimizer is not None and own is not None and innermost(optimizer) is not innermost(own):
            raise ValueError(
                "[GradClipper.clip_] optimizer: expected the one the clipper was built with, got another"
            )
        return optimizer or own  # type: ignore[return-value]

    def _begin_unscaling(
        self, params: list[Tensor], scaler: GradScaler | None, optimizer: torch.optim.Optimizer | None
    ) -> float | Tensor | None:
        if scaler is None:
            return None
        return grad_scaler.begin(scaler, self._stepped(optimizer), params, self._plan.names)

    def _check_folded(self, operation: str, optimizer: torch.optim.Optimizer) -> None:
        """Again only where the clipper's parameters or the sizes of the optimizer's groups are other ones."""
        names, sizes = self._plan.names, [len(group["params"]) for group in optimizer.param_groups]
        if self._folded[0] is not names or self._folded[1] != sizes:
            check_folded(operation, optimizer, self._plan)
            self._folded = names, sizes

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """copy, deepcopy and pickle come here."""
        shared = self._ranks.named or self._cache.plan is not None or self._selectors is not None
        if self._optimizer is None and not shared:
            return super().__reduce_ex__(protocol)
        raise TypeError(
            "[GradClipper] copy: expected no copy and no pickle of a clipper that is tied to an optimizer, "
            "to groups or to other ranks' shards; build another one for the copies of these"
        )
