"""`GradClipper`: clipping for a training loop, with statistics and handling of inf and NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args

import torch
from torch import Tensor

from gradkern.clipping import grad_scaler, observing, route, verdict
from gradkern.clipping.checks import check_optimizer, check_policies
from gradkern.clipping.clipper_policies import ClipperPolicies
from gradkern.clipping.late_errors import LateErrors
from gradkern.clipping.policies import GlobalNorm, Policy
from gradkern.clipping.route import RankGroups
from gradkern.clipping.selection import Selector
from gradkern.clipping.stepped_optimizer import SteppedOptimizer
from gradkern.clipping.verdict import Verdict
from gradkern.kernels.backend import C
from gradkern.kernels.measured import Measured
from gradkern.params.arguments import as_limit, as_order, check_group, check_selections
from gradkern.params.misuse import Misuse
from gradkern.params.names import NamedParameters
from gradkern.params.plan import ParameterPlan
from gradkern.params.stats import GradStats

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.distributed import ProcessGroup

OnNonfinite = Literal["propagate", "raise", "raise_later", "zero", "skip"]


class GradClipper:
    """Clip gradients by their global norm, by a policy or by groups, and return statistics of the same read.

    Exactly one of `max_norm`, `policy` and `groups` is given.

    Args:
        params: a Module (read again when its parameters change), (name, Parameter) pairs, or Parameters.
            Shapes and dtypes as in `clip_grad_norm_`.
        max_norm: the largest norm allowed; `inf` only measures.
        policy: one of `gradkern.policies`, for example ``ZClip()``.
        groups: ``{name: (selector, policy)}``: groups of parameters, each with its own norm and policy. A
            selector is a glob over names (``"*.bias"``), a function of name and parameter, an optimizer, a
            module or parameters. Every parameter must be in a group; the first selector that matches wins. A
            number in place of the policy limits the norm of the group, and None only measures it. With
            `process_group` or `pp_group`, a rank may have no parameters of a group that others have.
        norm_type: order of the norm, as in `clip_grad_norm_`.
        count_zeros: count zero elements too (`stats.zeros`), which costs a little. Of sparse gradients the
            stored elements are counted.
        on_nonfinite: what to do if a gradient has inf or NaN. What matters is the number of such elements,
            not the norm, which can overflow for finite gradients.

            - "propagate": as in torch, the norm is inf or NaN and the gradients become 0 or NaN. `AutoClip`,
              `ZClip`, `AdaGC` and `SkipOutliers` leave the gradients as they are.
            - "raise": raise a RuntimeError that names the parameters. Gradients are unchanged.
              Synchronises.
            - "raise_later": skip the step, like "skip", and raise the error of "raise" in the next `clip_`
              that finds the step completed (on a CPU, the next call), or in `check`. No synchronisation.
            - "zero": set all gradients to zero. An optimizer with momentum or weight decay still changes
              the parameters.
            - "skip": leave gradients unchanged and set `stats.skip_step` on the device. A fused `optimizer`
              skips the step by itself, without a synchronisation; otherwise read ``stats.skip_step``.
        optimizer: a fused optimizer (``torch.optim.AdamW(..., fused=True)``) that skips steps or, with
            `fold`, applies the coefficient. If it has several clippers, each of them can skip the step.
        fold: do not scale the gradients, but let `optimizer` divide them in ``optimizer.step()``, through its
            `grad_scale`. This saves the scale pass. Not with on_nonfinite="zero", groups or policies with
            several factors; what a `custom` policy returns is checked in `clip_`, before anything is written.
        process_group: the ranks that hold different parts of the *plain* parameters (experts, hand-made
            shards). DTensors know their ranks; other plain parameters are treated as replicas.
        in_process_group: whether a plain parameter, by canonical name, is split over `process_group`.
            Default: all are.
        pp_group: the ranks that hold different parts of the model (pipeline stages).
        counted_elsewhere: whether another rank counts a parameter, by canonical name: on the last stage, for
            example, an embedding that is tied to that of the first. It is clipped here too, but its row
            is 0.

    Examples:
        >>> clipper = GradClipper(model, max_norm=1.0)
        >>> loss.backward()
        >>> stats = clipper.clip_()
        >>> optimizer.step()

    Raises:
        TypeError, ValueError: an invalid argument, gradients of different groups that share memory already
            now, or ranks that build different clippers.

    Notes:
        A clipper with an optimizer, groups or DTensors cannot be copied or pickled (TypeError), nor can an
        object that holds it. Build another clipper for the copied model.

        With DTensors, `process_group` or `pp_group`, construction is a collective over their ranks (less than
        a kilobyte). It checks that all ranks have the same norm_type, on_nonfinite and count_zeros, the same
        named groups and policies with the same settings and, on a mesh, the same parameters in each group.

        Gradients of different groups must not share memory, which both would scale. They are checked here as
        far as they exist, and in every `clip_` before anything is written. A warning says so if the
        parameters themselves share memory.
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
        self._chosen = ClipperPolicies(max_norm, policy, groups)
        self._global = self._chosen.global_norm
        self.norm_type = as_order("GradClipper", norm_type)
        self._count_zeros = bool(count_zeros)
        self._fold = bool(fold)
        self.on_nonfinite = on_nonfinite
        self._late = LateErrors()
        check_group("GradClipper", "process_group", process_group)
        check_group("GradClipper", "pp_group", pp_group)
        check_selections("GradClipper", process_group, in_process_group, counted_elsewhere)
        check_policies(list(self._chosen.by_name.items()), self._fold)
        self._plan = ParameterPlan("GradClipper", params)
        self._misuse = Misuse("GradClipper.clip_", "clip")
        if not self._plan.params and process_group is None and pp_group is None:
            raise ValueError("[GradClipper] params: expected at least one parameter, got none")
        self._use_optimizer(optimizer)
        inside = None if in_process_group is None else (lambda i: in_process_group(self._plan.names[i]))
        elsewhere = None if counted_elsewhere is None else (lambda i: counted_elsewhere(self._plan.names[i]))
        self._ranks = RankGroups(process_group, pp_group, inside, elsewhere)
        self._cache = route.Cache()
        self._form_groups()
        self._chosen.check_at_first(self._plan)
        self._agree()

    def _agree(self) -> None:
        """Check that other ranks build the same clipper."""
        settings = {
            "norm_type": self.norm_type,
            "on_nonfinite": self._on_nonfinite,
            "count_zeros": self._count_zeros,
            **self._chosen.described(),
        }
        plan, rows = self._plan, self._chosen.rows_by_group()
        route.agree("GradClipper", plan.params, plan.names, settings, self._ranks, self._cache, rows)

    def _use_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        check_optimizer(optimizer, self.on_nonfinite, self._fold, self._chosen.may_skip)
        self._optimizer = SteppedOptimizer(optimizer, self, self._plan, self._fold)
        self._handover = self._optimizer.handover

    def _form_groups(self) -> None:
        self._chosen.form_groups(self._plan, may_be_empty=self._ranks.hold_parts)

    @property
    def max_norm(self) -> float:
        """The largest norm allowed. It can be set between steps.

        Raises:
            AttributeError: the clipper has groups or another policy. Their limits are in `policies`.
        """
        return self._global_policy().max_norm

    @max_norm.setter
    def max_norm(self, value: float) -> None:
        self._global_policy().max_norm = as_limit("GradClipper", "max_norm", value)

    def _global_policy(self) -> GlobalNorm:
        if self._global is None:
            raise AttributeError(
                "[GradClipper] max_norm: this clipper was built with a policy or groups; their limits are in "
                "clipper.policies"
            )
        return self._global

    @property
    def policies(self) -> Mapping[str, Policy | None]:
        """The policy of each group by name; without groups, the policy under the name ""."""
        return MappingProxyType(self._chosen.by_name)

    @property
    def on_nonfinite(self) -> OnNonfinite:
        """What to do if a gradient has inf or NaN. It can be set between steps."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: OnNonfinite) -> None:
        if value not in get_args(OnNonfinite):
            choices = ", ".join(get_args(OnNonfinite))
            raise ValueError(f"[GradClipper] on_nonfinite: expected one of {choices}, got {value!r}")
        if self._fold and value == "zero":
            raise ValueError(
                "[GradClipper] fold: cannot be combined with on_nonfinite='zero', because the optimizer only "
                "divides gradients, which does not make NaN zero; use 'skip'"
            )
        self._on_nonfinite: OnNonfinite = value
        #: What to do with the gradients in this step.
        self._treatment = "skip" if value == "raise_later" else value

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the parameters, in the order of the rows of the statistics."""
        return self._plan.names

    def __repr__(self) -> str:
        nonfinite = f", on_nonfinite={self._on_nonfinite!r}" if self._on_nonfinite != "propagate" else ""
        return f"GradClipper({len(self._plan.names)} parameters, {self._chosen!r}{nonfinite})"

    def clip_(
        self, *, scaler: GradScaler | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> GradStats:
        """Clip the gradients in place.

        Args:
            scaler: a `torch.amp.GradScaler`, if `clip_` is called between ``scaler.scale(loss).backward()``
                and ``scaler.step(optimizer)`` without ``scaler.unscale_``. Gradients are unscaled, checked
                and clipped with one read and one write, and the scaler's state is that after ``unscale_``.
                Statistics are of the unscaled gradients. If they have inf or NaN, the scaler skips the step
                and they are only unscaled (set to zero with "zero"). If no parameter has a gradient,
                ``scaler.step`` steps the optimizer, where torch would raise an AssertionError, because other
                ranks may have gradients.
            optimizer: the optimizer that `scaler` steps. Default: the clipper's. Ignored without a scaler.

        Returns:
            GradStats of the gradients before clipping, with `clip_coef`, and `skip_step` if something can
            skip the step: "skip", "raise_later", a policy that skips, or a scaler. Tensors stay on the
            gradients' device. Over ranks, totals and rows of DTensors are the same on every rank of a mesh;
            rows of plain tensors and `has_grad` are this rank's.

        Raises:
            RuntimeError: on_nonfinite="raise" and a gradient has inf or NaN, or "raise_later" and a gradient
                of an earlier step had; the message names the parameters. Or, as in `unscale_`, the scaler
                has unscaled or stepped since its last update. Gradients are unchanged.
            TypeError: `scaler` is not a GradScaler.
            ValueError: with `scaler`, a gradient is float16. With `scaler` or `fold`, the optimizer has other
                parameters than the clipper. Gradients are unchanged.

        Warns:
            GradkernWarning: no parameter has a gradient, all are frozen, or an optimizer has used these
                gradients already.

        Notes:
            No host-device synchronisation, except for "raise". If torch.distributed is initialised,
            "raise_later" waits for the previous step, so that all ranks raise in the same call. In a CUDA
            graph the error is raised in `check` only, since a replay runs no Python.
        """
        self._late.raise_known()
        params = self._plan.current()
        if scaler is not None and not grad_scaler.is_enabled(scaler):
            scaler = None  # GradScaler(enabled=False) neither scales nor skips
        self._optimizer.prepare()
        self._misuse.check_used(params)
        report = None if observing.observer is None else observing.observed(params)
        stats = self._clip(params, scaler, optimizer)
        if report is not None:
            report(stats)
        return stats

    def _clip(
        self, params: list[Tensor], scaler: GradScaler | None, optimizer: torch.optim.Optimizer | None
    ) -> GradStats:
        """Clip in one call of the extension, or else in steps."""
        plain = not (self._fold or self._ranks.named or self._cache.plan is not None)
        if self._global is not None and params and params[0].is_cuda:
            # A graph that is captured reads the limit from the device: setting it reaches the replays.
            self._global.limit_on(params[0].device)
            plain = plain and not torch.cuda.is_current_stream_capturing()
        if self._global is not None and scaler is None and plain:
            max_norm = self._global.max_norm
            columns = C.clip(
                params,
                max_norm,
                self.norm_type,
                self._treatment,
                self._count_zeros,
                self._plan.names,
            )
            if columns is not None:
                columns["threshold"] = max_norm
                return self._clipped(route.on_home_device(columns, params), params)
        elif scaler is None and plain and params and params[0].is_cpu:
            call = self._chosen.one_call(self._plan)
            columns = call.clip(params, self.norm_type, self._treatment, self._count_zeros)
            if columns is not None:
                return self._clipped(columns, params, call.natives)
        return self._clip_in_steps(params, scaler, optimizer)

    def _clipped(self, columns: dict[str, Any], params: list[Tensor], checked: object = None) -> GradStats:
        """The statistics of a clip that the extension did in one call. They take over its dict, because
        building another one would cost as much as the rest of the call."""
        skip, plan = columns["skip_step"], self._plan
        self._misuse.check_present(params, columns["has_grad"])
        if skip is not None:
            if self._handover is not None:
                self._handover.give(None, skip)
            if self._on_nonfinite == "raise_later":
                self._late.add(columns["nonfinite"].any(), columns["nonfinite"], plan.names)
        columns["numel"] = plan.sizes(columns["numel"])
        columns["names"], columns["first"], columns["_identities"] = plan.names, plan.first, plan.identities
        columns["norm_type"], columns["applied"] = self.norm_type, True
        columns["policy"] = self._chosen.facts(self._on_nonfinite, checked)
        return GradStats.of_fields(columns)

    def _statistics(self, measured: Measured, **further: Any) -> GradStats:
        plan = self._plan
        numel = plan.sizes(measured.numel)
        if not self._ranks.named:  # otherwise other ranks may have gradients
            self._misuse.check_present(plan.params, measured.has_grad)
        return GradStats.of(
            measured, plan.names, numel, plan.first, plan.identities, self.norm_type, **further
        )

    @torch.no_grad()
    def _clip_in_steps(
        self, params: list[Tensor], scaler: GradScaler | None, optimizer: torch.optim.Optimizer | None
    ) -> GradStats:
        """Measure, decide and apply in separate steps, for everything that is not done in one call."""
        self._form_groups()
        self._chosen.elements(self._plan).check(params)
        inverse = self._optimizer.begin_unscaling(params, scaler, optimizer)
        measured = self._measure(params, 1.0 if inverse is None else inverse)
        self._chosen.check_overlap(self._plan, self._cache.held)
        stats = self._statistics(measured, inv_scale=1.0 if inverse is None else inverse)
        bad = measured.bad()
        if self.on_nonfinite == "raise" and bool(bad):
            if scaler is not None:  # so that update() lowers the scale
                grad_scaler.record(scaler, self._optimizer.stepped(optimizer), params, bad)
            verdict.raise_bad(measured, self._plan.names, "GradClipper.clip_")
        decision, groups = self._chosen.decide(stats, measured)
        if self._chosen.may_skip_by_rows:
            skip = route.agree_on_skip(decision.skip, self._ranks, bad.device)
            decision = dataclasses.replace(decision, skip=skip)
        # The scaler skips the step, so that bad gradients are only unscaled.
        alone = inverse is not None and self.on_nonfinite == "propagate"
        judged = verdict.judge(decision, bad, "skip" if alone else self._treatment)
        factor = self._carry_out(params, stats, judged, inverse, scaler)
        if self.on_nonfinite == "raise_later":
            self._late.add(judged.bad, measured.nonfinite, self._plan.names)
        if scaler is not None:
            found = judged.bad if judged.skip is None else judged.skip | judged.bad
            grad_scaler.record(scaler, self._optimizer.stepped(optimizer), params, found)
        return dataclasses.replace(
            stats,
            clip_coef=verdict.smallest(factor).to(measured.total_norm.dtype),
            # The scaler skips by itself.
            skip_step=judged.bad if judged.skip is None and inverse is not None else judged.skip,
            threshold=decision.threshold,
            policy=self._chosen.facts(self._on_nonfinite),
            applied=not self._fold,
            _factor=factor if factor.ndim else None,
            _groups=groups,
        )

    def _measure(self, params: list[Tensor], scale: float | Tensor) -> Measured:
        return route.measure(
            "GradClipper.clip_",
            params,
            self._plan.names,
            self.norm_type,
            self._count_zeros,
            scale,
            self._ranks,
            self._cache,
            self._chosen.members(),
        )

    def _carry_out(
        self,
        params: list[Tensor],
        stats: GradStats,
        judged: Verdict,
        inverse: float | Tensor | None,
        scaler: GradScaler | None,
    ) -> Tensor:
        """Scale the gradients, or let the optimizer do it.

        Returns:
            0-d or [N]: the factor of the gradients, without `inverse`.
        """
        factor = judged.factor if inverse is None else judged.factor * inverse
        if not self._fold:
            verdict.apply(params, factor, judged.zero, self._cache.held)
            if self._handover is not None and scaler is None and judged.skip is not None:
                self._handover.give(None, judged.skip)
            skips = judged.skip is not None and judged.skip.is_cpu and bool(judged.skip)
            if skips or not self._chosen.elements(self._plan):
                return judged.factor
            return self._change_elements(params, stats, judged.factor)
        assert self._handover is not None
        if factor.ndim:
            raise ValueError(
                "[GradClipper.clip_] fold: expected a policy with one factor for all gradients, got one for "
                "each; leave fold out"
            )
        divisor, factor = verdict.split_for_fold(factor)
        verdict.apply(params, factor, None, self._cache.held)
        self._handover.give(divisor, torch.zeros_like(judged.bad) if judged.skip is None else judged.skip)
        return judged.factor

    @torch.no_grad()
    def _change_elements(self, params: list[Tensor], stats: GradStats, factor: Tensor) -> Tensor:
        """[N]: `factor`, and what element-wise policies have done to the norms."""
        names, held = self._plan.names, self._cache.held

        def l2_norm() -> Tensor:
            return route.measure(
                "GradClipper.clip_", params, names, self.norm_type, False, 1.0, self._ranks, self._cache
            ).l2_norm

        return self._chosen.elements(self._plan).apply_(params, held, stats, factor, l2_norm)

    def check(self) -> None:
        """Wait for all steps so far and raise the pending error of on_nonfinite="raise_later". Synchronises.

        Call it at the end of training, before a checkpoint, and after a CUDA graph was replayed.

        Raises:
            RuntimeError: a gradient had inf or NaN. The message names the parameters.
        """
        self._late.raise_all()

    def state_dict(self) -> dict[str, Any]:
        """The states of the policies by group name; without groups, under the name ""."""
        return self._chosen.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            TypeError, ValueError: the state is that of other groups, other policies or other parameters. No
                policy has changed.
        """
        self._chosen.load_state_dict(state, self._plan)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Called by copy, deepcopy and pickle."""
        shared = self._ranks.named or self._cache.plan is not None or self._chosen.has_groups
        if not self._optimizer.is_given and not shared:
            return super().__reduce_ex__(protocol)
        raise TypeError(
            "[GradClipper] copy: a clipper with an optimizer, with groups or with other ranks' shards cannot "
            "be copied or pickled; build another one for the copied model"
        )
