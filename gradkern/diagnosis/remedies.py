"""Choose the remedies of a finding, the most suitable first, by activations, optimizer and the run's
numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from gradkern.diagnosis import amounts, cures, optimizer, step_cures
from gradkern.diagnosis.case import FEW_STEPS, TOO_SMALL, Case
from gradkern.diagnosis.climb import falls_without_end
from gradkern.diagnosis.finding import Finding, Remedy
from gradkern.diagnosis.gain import first_gain, first_offset, input_rms
from gradkern.diagnosis.sums import starts_as_a_sum

#: Estimated rms of the input from which scaling it is the first remedy.
LARGE_INPUT = 10.0
#: Gain below which ReLU layers lose the signal over depth.
SMALL_GAIN = 0.9
#: Standard deviations of what the weights add from which a bias decides alone.
OFFSET = 3.0
#: A norm that grew by less than this in ten or more steps before it became NaN did not overflow.
STEADY = 3.0
#: Momentum above that of common settings (0.9, and 0.95 of large models).
HIGH_MOMENTUM = 0.98
#: A regression loss from which targets are regarded as large.
LARGE_LOSS = 1e3


#: Evidence that decides on the remedies of other findings, too.
_MARKS = ("summed", "uphill", "by_itself")


def with_remedies(case: Case, findings: Iterable[Finding]) -> list[Finding]:
    """The findings with their remedies."""
    found = list(findings)
    kinds = {f.kind for f in found} | {m for f in found for m in _MARKS if m in f.evidence}
    if falls_without_end(case):
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


# ---- what the run says ----


def _input_is_large(case: Case) -> bool:
    """Whether the input of the first layer is large, estimated from its gradients."""
    return input_rms(case) >= LARGE_INPUT


def _targets_are_large(case: Case) -> bool:
    e = case.evidence
    loss = str((e.facts.get("graph") or {}).get("loss", "")).lower()
    first = e.loss[np.isfinite(e.loss)][:1]
    regression = "mse" in loss or "l1" in loss or not loss
    return bool(len(first)) and regression and float(first[0]) >= LARGE_LOSS and input_rms(case) < LARGE_INPUT


def _initialization(case: Case) -> list[Remedy]:
    """The initialization that fits the activations."""
    model = case.model
    return [cures.xavier_init() if model.squashes and not model.gates else cures.he_init()]


def _initializations(case: Case) -> list[Remedy]:
    """The initialization that fits, and the other one, which also keeps the scale of the signal. Of 22 runs
    with weights that were too large the first cured 19 and the other one 21, normalization 7: it leaves the
    steps small relative to the weights."""
    return [*_initialization(case), cures.he_init(), cures.xavier_init()]


def _scaling(case: Case, kinds: set[str]) -> list[Remedy]:
    inputs = [cures.scale_inputs(case)] if _input_is_large(case) else []
    weights = "poor_initialization" in kinds  # which explains a large loss
    return inputs + ([cures.scale_targets(case)] if _targets_are_large(case) and not weights else [])


def _starts_small(case: Case) -> bool:
    """Whether weights before ReLU or similar activations have a gain that shrinks the signal (He's is 1.41,
    PyTorch's 0.58)."""
    if not (case.model.gates or case.model.leaks) or case.model.normalizes:
        return False
    values = [first_gain(case, layer) for layer in case.model.layers[:-1]]
    return bool(values) and 0 < float(np.median(values)) < SMALL_GAIN


def _decay(case: Case, kinds: set[str]) -> list[Remedy]:
    """Weight decay, if weights grow by themselves, or although no step is large."""
    grow = "weight_growth" in kinds and not kinds & {"update_too_large", "summed", "uphill"}
    return [cures.weight_decay(case)] if grow or "by_itself" in kinds else []


def _zero(kinds: set[str]) -> list[Remedy]:
    return [cures.zero_grad()] if "summed" in kinds else []


def _sign(case: Case, kinds: set[str]) -> list[Remedy]:
    if "endless" in kinds:
        return [cures.check_part(case)]
    return [cures.check_sign()] if "uphill" in kinds else []


def _schedule(case: Case) -> list[Remedy]:
    """The schedule, if the learning rate grows without end; momentum, if it is unusually high."""
    high = optimizer.momentum(case) > HIGH_MOMENTUM
    rising = [step_cures.check_schedule(case)] if amounts.rate_grows(case) else []
    return rising + ([step_cures.less_momentum(case)] if high else [])


def _skip(case: Case) -> list[Remedy]:
    """Skip steps with inf and NaN, unless the run already does."""
    bad = ~np.isfinite(case.evidence.total_norm)
    return [] if bad.any() and case.evidence.skipped[bad].all() else [cures.skip_nonfinite()]


# ---- by kind ----


def _nonfinite(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    growth = f.evidence.get("norm_growth_before", float("nan"))
    thrown = bool(kinds & {"exploding_gradient", "weight_growth"})
    steady = growth < STEADY and f.first_step - case.evidence.steps[0] >= FEW_STEPS
    if growth >= 10 or thrown or ("update_too_large" in kinds and not steady):
        first = _zero(kinds) + _sign(case, kinds) + _schedule(case) + _scaling(case, kinds)
        if "poor_initialization" in kinds:
            first += _initialization(case)
        lower = [step_cures.lower_lr(case), step_cures.find_lr(), step_cures.clip(case, hold=True)]
        return [*first, *_decay(case, kinds), *lower, *_skip(case)]
    scale = [cures.dynamic_scale(case), cures.bfloat16()] if _scale_stands(case) else []
    scale += (
        [cures.scale_inputs(case)] if _input_is_large(case) else []
    )  # exponentials and logarithms overflow
    skip, check = _skip(case), [cures.check_data(f)]
    always = not np.isfinite(case.evidence.total_norm).any()  # there is no step to be taken
    return [*scale, *(check + skip if always else skip + check), step_cures.clip(case)]


def _scale_stands(case: Case) -> bool:
    """Whether gradients overflow from the start at a loss scale that is never lowered."""
    scale, bad = case.evidence.loss_scale, ~np.isfinite(case.evidence.total_norm)
    known = np.isfinite(scale)
    return bool(known.any() and np.ptp(scale[known]) == 0 and bad[:FEW_STEPS].all())


def _underflow(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [cures.loss_scaling(), cures.bfloat16()]


def _no_gradient(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [cures.use_parameters(f), cures.freeze(f)]


def _dead(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    from_the_start = f.first_step <= case.evidence.steps[0] + 2
    start, lower = _initialization(case), step_cures.lower_lr(case)
    if from_the_start:
        return [*_offset(case, f), *start, cures.leaky_relu(), lower]
    offset = _offset(case, f)
    return [*_zero(kinds), *offset, *_schedule(case), lower, cures.leaky_relu(), *start]


def _offset(case: Case, f: Finding) -> list[Remedy]:
    """A bias that switches the units off, if the finding has one."""
    e, off = case.evidence, [x for x in case.model.layers if first_offset(case, x) >= OFFSET]
    return [cures.zero_bias(f)] if any(e.names[x.weight] in f.layers for x in off) else []


def _saturation(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    late = [step_cures.lower_lr(case)] if f.first_step > case.evidence.steps[0] else []
    start = [*_scaling(case, kinds), *_offset(case, f)]
    return [*start, *late, cures.xavier_init(), cures.he_init(), cures.relu(), cures.normalization()]


def _vanishing(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    model = case.model
    if "decades_over_time" in f.evidence:
        return [cures.open_forget_gate()] if model.words & {"lstm", "lstmcell"} else [cures.gated()]
    start = _initialization(case) if "poor_initialization" in kinds or _starts_small(case) else []
    if "weight_collapse" in kinds:
        start = [cures.less_weight_decay(case)]
    change = [cures.relu()] if (model.squashes and not model.gates) or model.selects else []
    gates = [cures.gated()] if model.recurs else []
    norm = [] if model.normalizes else [cures.normalization()]
    scaled = [cures.scale_inputs(case)] if _input_is_large(case) else []
    return [
        *scaled,
        *start,
        *gates,
        *change,
        cures.residual(),
        *norm,
        *_initialization(case),
        cures.fewer_layers(f),
    ]


def _exploding(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "summed" in kinds:
        return [cures.zero_grad(), step_cures.lower_lr(case), step_cures.clip(case)]
    of_weights = "decades_over_depth" in f.evidence and "by_itself" not in kinds
    if of_weights or "poor_initialization" in kinds:
        norm = [] if case.model.normalizes else [cures.normalization()]
        return [
            *_scaling(case, kinds),
            *_initializations(case),
            *norm,
            step_cures.clip(case),
            cures.residual(),
        ]
    return [
        *_sign(case, kinds),
        *_schedule(case),
        *_scaling(case, kinds),
        *_decay(case, kinds),
        step_cures.clip(case, hold=True),
        step_cures.lower_lr(case),
        cures.weight_decay(case),
    ]


def _initial(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    if "crest" in f.evidence:  # equal units stay equal, also with normalization
        return _initializations(case)
    if "table_rms" in f.evidence:
        return [cures.table_init(f), *_initializations(case)]
    if "recurrent_gain" in f.evidence:
        return [cures.orthogonal_init(), cures.gated()]
    norm = [] if case.model.normalizes else [cures.normalization()]
    if f.evidence.get("decades_of_forward_signal", 0.0) < 0:  # it fades on the way
        return [*_scaling(case, kinds), *_initialization(case), cures.residual(), *norm]
    return [*_scaling(case, kinds), *_initializations(case), *norm]


def _too_large(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    first = [*_zero(kinds), *_sign(case, kinds), *_schedule(case), *_scaling(case, kinds)]
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
        *_zero(kinds),
        *_sign(case, kinds),
        *_schedule(case),
        *_decay(case, kinds),
        step_cures.lower_lr(case),
        cures.weight_decay(case),
        step_cures.clip(case, hold=True),
    ]


def _collapse(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [cures.less_weight_decay(case), step_cures.lower_lr(case)]


def _always(case: Case, f: Finding, kinds: set[str]) -> list[Remedy]:
    return [*_zero(kinds), step_cures.raise_max_norm(case), step_cures.raise_lr(case)]


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
    return [*_zero(kinds), *_schedule(case), *lower]


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
