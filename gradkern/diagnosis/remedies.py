"""Choose the remedies of a finding, the most suitable first, by activations, optimizer and the run's
numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from gradkern.diagnosis import amounts, cures, optimizer, shared_cures, start_cures, step_cures
from gradkern.diagnosis.case import FEW_STEPS, TOO_SMALL, Case
from gradkern.diagnosis.climb import falls_without_end
from gradkern.diagnosis.finding import Finding, Remedy
from gradkern.diagnosis.gain import first_offset
from gradkern.diagnosis.sums import starts_as_a_sum

#: Standard deviations of what the weights add from which a bias decides alone.
OFFSET = 3.0
#: A norm that grew by less than this in ten or more steps before it became NaN did not overflow.
STEADY = 3.0
#: Evidence that decides on the remedies of other findings, too.
_MARKS = ("summed", "uphill", "negated", "by_itself")


def with_remedies(case: Case, findings: Iterable[Finding]) -> list[Finding]:
    """The findings with their remedies."""
    found = list(findings)
    kinds = {f.kind for f in found} | {m for f in found for m in _MARKS if m in f.evidence}
    if "negated" in kinds:
        kinds -= {"summed"}
    elif falls_without_end(case):
        kinds = kinds - {"summed"} | {"endless"}
    elif starts_as_a_sum(case):
        kinds |= {"summed"}
    return [
        dataclasses.replace(f, remedies=_repeated(_distinct(_BY_KIND[f.kind](case, f, kinds)))) for f in found
    ]


def _distinct(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """The remedies without repeated actions."""
    found: dict[str, Remedy] = {}
    for remedy in remedies:
        found.setdefault(remedy.action, remedy)
    return tuple(found.values())


def _repeated(remedies: tuple[Remedy, ...]) -> tuple[Remedy, ...]:
    """Add to a first remedy "lower_lr" what to do if that is not enough."""
    first, *others = remedies
    if first.action == "lower_lr":
        because = f"{first.because} If the run still fails, repeat with a smaller factor."
        first = dataclasses.replace(first, because=because)
    return (first, *others)


# ---- by kind ----


def _nonfinite(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    growth = f.evidence.get("norm_growth_before", float("nan"))
    thrown = bool(kinds & {"exploding_gradient", "weight_growth"})
    steady = growth < STEADY and f.first_step - case.evidence.steps[0] >= FEW_STEPS
    if growth >= 10 or thrown or ("update_too_large" in kinds and not steady):
        first = (
            shared_cures.zero(kinds)
            + shared_cures.sign(case, kinds)
            + shared_cures.schedule(case)
            + shared_cures.scaling(case, kinds)
        )
        if "poor_initialization" in kinds:
            first += shared_cures.initialization(case)
        lower = [step_cures.lower_lr(case), step_cures.find_lr(), step_cures.clip(case, hold=True)]
        return [*first, *shared_cures.decay(case, kinds), *lower, *shared_cures.skip(case)]
    scale = [cures.dynamic_scale(case), cures.bfloat16()] if shared_cures.scale_stands(case) else []
    if shared_cures.input_is_large(case):  # exponentials and logarithms overflow
        scale += [cures.scale_inputs(case)]
    skip, check = shared_cures.skip(case), [cures.check_data(f)]
    always = not np.isfinite(case.evidence.total_norm).any()  # there is no step to be taken
    return [*scale, *(check + skip if always else skip + check), step_cures.clip(case)]


def _underflow(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [cures.loss_scaling(), cures.bfloat16()]


def _no_gradient(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "reached" in f.evidence:
        return [cures.record_in_time()]
    return [cures.use_parameters(f), cures.freeze(f)]


def _dead(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "outputs_gated" in f.evidence:
        return [cures.plain_outputs(f)]
    from_the_start = f.first_step <= case.evidence.steps[0] + 2
    start, lower = shared_cures.initialization(case), step_cures.lower_lr(case)
    if from_the_start:
        return [*_offset(case, f), *start, cures.leaky_relu(), lower]
    offset = _offset(case, f)
    return [
        *shared_cures.zero(kinds),
        *offset,
        *shared_cures.schedule(case),
        lower,
        cures.leaky_relu(),
        *start,
    ]


def _offset(case: Case, f: Finding) -> list[Remedy]:
    """A bias that switches the units off, if the finding has one."""
    e, off = case.evidence, [x for x in case.model.layers if first_offset(case, x) >= OFFSET]
    return [start_cures.zero_bias(f)] if any(e.names[x.weight] in f.layers for x in off) else []


def _saturation(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "lowest_possible_loss" in f.evidence:
        return [cures.plain_outputs(f)]
    late = [step_cures.lower_lr(case)] if f.first_step > case.evidence.steps[0] else []
    start = [*shared_cures.scaling(case, kinds), *_offset(case, f)]
    return [
        *start,
        *late,
        start_cures.xavier_init(),
        start_cures.he_init(),
        cures.relu(),
        cures.normalization(),
    ]


def _vanishing(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    model = case.model
    if "decades_over_time" in f.evidence:
        return [start_cures.open_forget_gate()] if model.words & {"lstm", "lstmcell"} else [cures.gated()]
    start = (
        shared_cures.initialization(case)
        if "poor_initialization" in kinds or shared_cures.starts_small(case)
        else []
    )
    if "weight_collapse" in kinds:
        start = [cures.less_weight_decay(case)]
    change = [cures.relu()] if (model.squashes and not model.gates) or model.selects else []
    gates = [cures.gated()] if model.recurs else []
    norm = [] if model.normalizes else [cures.normalization()]
    scaled = [cures.scale_inputs(case)] if shared_cures.input_is_large(case) else []
    return [
        *scaled,
        *start,
        *gates,
        *change,
        cures.residual(),
        *norm,
        *shared_cures.initialization(case),
        cures.fewer_layers(f),
    ]


def _exploding(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "negated" in f.evidence:
        return [*shared_cures.sign(case, kinds), step_cures.lower_lr(case)]
    if "summed" in kinds:
        return [cures.zero_grad(), step_cures.lower_lr(case), step_cures.clip(case)]
    of_weights = "decades_over_depth" in f.evidence and "by_itself" not in kinds
    if of_weights or "poor_initialization" in kinds:
        norm = [] if case.model.normalizes else [cures.normalization()]
        return [
            *shared_cures.sign(case, kinds),
            *shared_cures.scaling(case, kinds),
            *shared_cures.initializations(case),
            *norm,
            step_cures.clip(case),
            cures.residual(),
        ]
    return [
        *shared_cures.sign(case, kinds),
        *shared_cures.schedule(case),
        *shared_cures.scaling(case, kinds),
        *shared_cures.decay(case, kinds),
        step_cures.clip(case, hold=True),
        step_cures.lower_lr(case),
        cures.weight_decay(case),
    ]


def _initial(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "crest" in f.evidence:  # equal units stay equal, also with normalization
        return shared_cures.initializations(case)
    if "table_rms" in f.evidence:
        return [start_cures.table_init(f), *shared_cures.initializations(case)]
    if "recurrent_gain" in f.evidence:
        return [start_cures.orthogonal_init(), cures.gated()]
    norm = [] if case.model.normalizes else [cures.normalization()]
    if f.evidence.get("decades_of_forward_signal", 0.0) < 0:  # it fades on the way
        return [
            *shared_cures.scaling(case, kinds),
            *shared_cures.initialization(case),
            cures.residual(),
            *norm,
        ]
    return [*shared_cures.scaling(case, kinds), *shared_cures.initializations(case), *norm]


def _too_large(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    first = [
        *shared_cures.zero(kinds),
        *shared_cures.sign(case, kinds),
        *shared_cures.schedule(case),
        *shared_cures.scaling(case, kinds),
    ]
    others = [step_cures.clip(case, hold=True), step_cures.warmup()]
    others = others[::-1] if optimizer.is_adaptive(case) else others
    return [*first, step_cures.lower_lr(case), step_cures.find_lr(), *others]


def _too_small(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if f.layers:
        return [cures.add_to_optimizer(case, f)]
    halves = [cures.float32_weights()] if amounts.has_half_weights(case) else []
    if amounts.rate_is_zero(case):
        return [step_cures.raise_lr(case), step_cures.find_lr(), cures.call_step()]
    if amounts.rate_plunges(case):
        return [step_cures.check_schedule(case), step_cures.raise_lr(case)]
    if not f.evidence.get("median_update_ratio") and not (halves and len(case.evidence.update_steps)):
        return [cures.call_step(), step_cures.raise_lr(case)]
    coef = case.evidence.clip_coef[np.isfinite(case.evidence.clip_coef)]
    factor = max(float(np.median(coef)), 1e-30) if len(coef) else 1.0
    held = "always_clipping" in kinds and f.evidence["median_update_ratio"] / factor >= TOO_SMALL
    clipped = [step_cures.raise_max_norm(case)] if held else []
    raised = [step_cures.raise_lr(case), step_cures.find_lr()]
    if halves and 0 < optimizer.asked_step(case) < TOO_SMALL:  # too small for float32, too
        return [*clipped, *raised, *halves]
    return [*clipped, *halves, *raised]


def _growth(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [
        *shared_cures.zero(kinds),
        *shared_cures.sign(case, kinds),
        *shared_cures.schedule(case),
        *shared_cures.decay(case, kinds),
        step_cures.lower_lr(case),
        cures.weight_decay(case),
        step_cures.clip(case, hold=True),
    ]


def _collapse(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [cures.less_weight_decay(case), step_cures.lower_lr(case)]


def _always(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [*shared_cures.zero(kinds), step_cures.raise_max_norm(case), step_cures.raise_lr(case)]


def _never(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    clip = step_cures.clip(case)
    because = f"Nothing is wrong. For clipping to act, {clip.because[0].lower()}{clip.because[1:]}"
    return [dataclasses.replace(clip, because=because)]


def _spike(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [step_cures.clip(case), cures.check_data(f), step_cures.lower_lr(case)]


def _oscillating(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "travel" in f.evidence:
        return [cures.check_labels(), cures.shuffle(), step_cures.lower_lr(case)]
    if "in_turn" in f.evidence:
        return [cures.shuffle(), cures.check_labels(), step_cures.lower_lr(case)]
    lower = [step_cures.lower_lr(case), step_cures.find_lr(), step_cures.clip(case)]
    return [*shared_cures.zero(kinds), *shared_cures.schedule(case), *lower]


def _not_decreasing(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [cures.check_labels(), cures.overfit_one_batch()]


_BY_KIND: dict[str, Callable[[Case, Finding, set[str]], list[Remedy]]] = {
    "nonfinite_gradient": _nonfinite,
    "low_precision_underflow": _underflow,
    "no_gradient": _no_gradient,
    "dead_units": _dead,
    "saturation": _saturation,
    "vanishing_gradient": _vanishing,
    "exploding_gradient": _exploding,
    "poor_initialization": _initial,
    "update_too_large": _too_large,
    "weight_growth": _growth,
    "weight_collapse": _collapse,
    "update_too_small": _too_small,
    "always_clipping": _always,
    "never_clipping": _never,
    "gradient_spike": _spike,
    "loss_oscillating": _oscillating,
    "loss_not_decreasing": _not_decreasing,
}
