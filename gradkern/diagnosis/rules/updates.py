"""Rules for the size of optimizer steps relative to the weights: too large, too small, or none at all.

‖Δw‖ / ‖w‖ is computed over all matrices together. May be wrong for weights that are meant to be small,
although a zero-initialized adapter counts little. May also be wrong for a resumed run at the end of its
schedule; nothing is reported if its learning rate is seen to fall, unless its model is an untrained
classifier.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradkern._util.text import percent
from gradkern.diagnosis.amounts import rate_grows, rate_plunges
from gradkern.diagnosis.case import FALLING, FEW_STEPS, TOO_SMALL, Case
from gradkern.diagnosis.distance import BEYOND, distance, reach, steps_in_all
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.gain import classes_of, first_gain, guesses, multiplies, possible_classes

#: ‖Δw‖ / ‖w‖ of a step. Healthy runs stay below 0.10, except for small weights that find their size in a few
#: steps (linear regression: 0.83), at each of which the loss falls. Half of LARGE is enough if the loss ends
#: at RUINED times its start.
LARGE, HUGE = 0.2, 0.7
RUINED = 1.5
#: A loss that jumped in the first steps is above its first value by this factor.
JUMP = 1.5
#: A loss is set back if the median after the first step is above the first loss by this part.
SET_BACK = 0.1
#: A loss has recovered from a set-back if this part of the first loss is gone.
RECOVERED = 0.1
#: Large steps have overwritten the first weights, whose scale lets the signal pass, if these are this many
#: times as large after the first steps (healthy, with two looks at large steps: up to 1.7), and were not
#: small: their gain (`gain`) was at least ORDINARY (PyTorch's is 0.58).
OVERWRITTEN, ORDINARY = 2.0, 0.3
#: Steps until which a loss that has not fallen is not blamed on steps that were large only at first.
SOON = 40
#: 16-bit weights lose changes below half their precision (2**-9 of the weight for bfloat16), and therefore
#: most changes of 1e-4 on average.
SMALL_16_BIT = 1e-4
#: ‖Δw‖ / ‖w‖ summed over the run from which the weights have moved.
MOVED = 0.01
#: A loss that falls by more than this part falls slowly. Weights that move by 1e-4 in all lower it by up to
#: 0.3 % at the beginning of training, where ‖g‖ ‖w‖ is up to 30 times the loss.
SLOW_FALL = 0.005
#: A fall of less than this part of the loss is noise if the steps cannot make it.
SMALL_FALL = 0.1
#: Recorded steps without a step of the optimizer from which that is reported.
NEVER_STEPPED = 10
#: Steps in which a second optimizer, which may step at every tenth of them only, gets its turn.
TURNS = 20
#: A parameter whose gradient is less than this part of the others' may stay unchanged because of rounding.
COUNTS = 1e-2
#: A schedule is at its end if its rate is below this part of the highest.
DECAYED = 0.5
#: First loss of an untrained classifier, over ln(classes), that of guessing, and of one that was trained
#: before.
UNTRAINED, TRAINED = 0.9, 0.1


def update_too_large(case: Case) -> list[Finding]:
    """Steps about as large as the weights, or a fifth of them while the loss gets worse."""
    e = case.evidence
    movement = case.movement
    ruined = case.trend.known and case.trend.rose and case.trend.end > RUINED * abs(case.trend.start)
    with np.errstate(invalid="ignore"):
        at = np.flatnonzero((movement >= (LARGE / 2 if ruined else LARGE)) | np.isinf(movement))
    if not len(at):
        return _outgrown(case) if ruined else []
    largest = float(np.nanmax(movement))
    harmed, set_back = _harmed(case), _set_back(case)
    overwritten = len(at) > 1 and _overwritten(case)
    if not harmed and not set_back and not overwritten and (largest < HUGE or case.falls_at_once):
        return []
    if at.max() <= 1 and not overwritten and len(movement) > 3 and _did_no_harm(case):
        return []
    severity = "severe" if harmed else "warning"
    if not harmed and _recovered(case):
        severity = "info"
    why = (
        f"At step {e.update_steps[at[0]]} one optimizer step changed the weights by "
        f"{percent(float(movement[at[0]]))} of their norm; healthy steps stay below 10 %."
    )
    numbers = {"largest_update_ratio": largest, "steps_above_0.2": len(at), "lr": float(e.lr[0])}
    first, last = int(e.update_steps[at[0]]), int(e.update_steps[at[-1]])
    return [case.finding("update_too_large", severity, why, numbers, first=first, last=last)]


def _outgrown(case: Case) -> list[Finding]:
    """Steps that are large by now, because the learning rate has grown far since the last look at them."""
    e, known = case.evidence, np.flatnonzero(np.isfinite(case.movement))
    if not rate_grows(case) or not len(known):
        return []
    last, moved = int(e.update_steps[known[-1]]), float(case.movement[known[-1]])
    growth = e.lr / e.lr[np.searchsorted(e.steps, last)]
    large = np.flatnonzero((e.steps > last) & (moved * growth >= LARGE))
    if not len(large):
        return []
    why = (
        f"At step {last} one optimizer step changed the weights by {percent(moved)} of their norm. The "
        f"learning rate has grown {growth[-1]:.2g} times since then, and the loss has risen."
    )
    numbers = {"largest_update_ratio": moved, "lr": float(e.lr[-1])}
    return [case.finding("update_too_large", "severe", why, numbers, first=int(e.steps[large[0]]))]


def _harmed(case: Case) -> bool:
    """Whether the loss did not fall, or only to that of guessing, is far above its best, or is not finite."""
    e, trend = case.evidence, case.trend
    if (e.has_loss & ~np.isfinite(e.loss)).any() or not np.isfinite(e.total_norm).all():
        return True
    if not trend.known:
        return False
    if trend.count >= SOON and guesses(case):
        return True
    before = float(e.loss[np.isfinite(e.loss)][0])
    above = trend.end - trend.lowest > 0.25 * abs(before - trend.lowest) + 3 * trend.error
    return not trend.fell or trend.end > before or above


def _overwritten(case: Case) -> bool:
    """Whether the first steps made ordinary weights twice as large."""
    e, size = case.evidence, case.weight_size
    early = size[e.update_steps < e.steps[0] + FEW_STEPS]
    gains = [first_gain(case, layer) for layer in case.model.layers if multiplies(case, layer)]
    ordinary = bool(gains) and float(np.median(gains)) >= ORDINARY
    return ordinary and len(early) > 1 and bool(early[-1] >= OVERWRITTEN * early[0])


def _set_back(case: Case) -> bool:
    """Whether the first steps raised the loss, and it did not recover at once."""
    loss = case.evidence.loss[: FALLING + 1]
    known = len(loss) > FALLING and bool(np.isfinite(loss).all())
    return known and float(np.median(loss[1:])) > loss[0] + SET_BACK * abs(loss[0])


def _recovered(case: Case) -> bool:
    """Whether only the very first step was large, and the loss came back clearly below its first value."""
    later = case.movement[1:][np.isfinite(case.movement[1:])]
    first = float(case.evidence.loss[np.isfinite(case.evidence.loss)][0])
    healthy = len(later) > 1 and float(later.max()) < LARGE / 2
    return healthy and case.trend.kept and first - case.trend.end > RECOVERED * abs(first)


def _did_no_harm(case: Case) -> bool:
    """Whether large first steps (small weights, adaptive optimizers) did no harm: the loss did not jump, and
    it has fallen since or may still fall."""
    loss, trend = case.evidence.loss[:FEW_STEPS], case.trend
    if not np.isfinite(loss).all() or loss.max() > JUMP * abs(loss[0]) or _set_back(case):
        return False
    if trend.count >= SOON and guesses(case):
        return False
    fell = trend.fell or trend.lowest < trend.start / 2
    return fell or (len(case.evidence.steps) < SOON and not trend.rose)


def update_too_small(case: Case) -> list[Finding]:
    """Nothing moves, and the loss does not fall; or some parameters never move while others do."""
    return [*_no_movement(case), *_left_out(case)]


def _no_movement(case: Case) -> list[Finding]:
    e = case.evidence
    if e.watches_steps and not len(e.update_steps) and len(e.steps) >= NEVER_STEPPED and not case.trend.fell:
        return [_never_stepped(case)]
    movement = case.movement[np.isfinite(case.movement)]
    if len(movement) < 2 or len(e.steps) < FEW_STEPS or _falls_slowly(case):
        return []
    half = any(str(e.params.get(n, {}).get("dtype", "")).endswith("float16") for n in e.names)
    limit = SMALL_16_BIT if half else TOO_SMALL
    steps, typical, in_all = steps_in_all(case), float(np.median(movement)), distance(case)
    if typical > limit or in_all > MOVED or not np.isfinite(e.total_norm).all() or not _reaches_weights(case):
        return []
    rates = e.lr[np.isfinite(e.lr)]
    if _ends(case):
        return []
    if len(rates) and not rates.any():
        why = "The learning rate is 0 at every step, so the weights do not change at all."
    elif typical == 0:
        why = (
            "The weights do not change at all: optimizer.step() is not called, or the optimizer has other "
            "parameters."
        )
    else:
        why = (
            f"A step changes the weights by {typical:.0e} of their norm, and all {steps} steps by "
            f"{in_all:.1e}: the model and the loss stay where they started."
        )
    numbers = {"median_update_ratio": typical, "moved_in_all": in_all, "lr": float(e.lr[-1])}
    severity = "severe" if case.trend.known else "warning"
    if typical > 0 and _was_trained(case):
        severity = "info" if case.model.loss else "warning"
    return [case.finding("update_too_small", severity, why, numbers)]


def _was_trained(case: Case) -> bool:
    """Whether the first loss of a classifier is far below that of guessing: it learned before the run. A loss
    of unknown kind may be one, unless it is negative."""
    trained = case.trend.start < TRAINED * math.log(max(possible_classes(case), 1))
    return trained and (bool(case.model.loss) or case.trend.start > 0)


def _ends(case: Case) -> bool:
    """Whether the run may be the end of a longer one: its learning rate only falls, but not so fast that most
    of the run is lost, and its first loss is not that of an untrained classifier."""
    rates, classes = case.evidence.lr[np.isfinite(case.evidence.lr)], classes_of(case)
    untrained = classes > 1 and case.trend.start >= UNTRAINED * math.log(classes)
    falls = len(rates) > 0 and rates[-1] < DECAYED * rates.max() and rates[0] == rates.max()
    return bool(falls) and not untrained and not rate_plunges(case)


def _reaches_weights(case: Case) -> bool:
    """Whether a matrix ever had a gradient that is not zero. Behind a dead layer only biases have one, and no
    step can move the matrices."""
    columns = case.model.matrices or list(range(len(case.evidence.names)))
    return bool(np.nan_to_num(case.evidence.rms[:, columns]).any())


def _falls_slowly(case: Case) -> bool:
    """Whether the loss fell, or fell by more than such small steps explain, as in a converged run. A small
    fall is noise if it is far larger than the steps can make it."""
    trend, least = case.trend, SLOW_FALL * abs(case.trend.start)
    fall = trend.start - trend.end
    if fall < SMALL_FALL * abs(trend.start) and fall > BEYOND * reach(case):
        return False
    return trend.fell or fall > max(3 * trend.error, least)


def _never_stepped(case: Case) -> Finding:
    count = len(case.evidence.steps)
    why = f"In {count} recorded steps the optimizer took none: step() is not called, and nothing is learned."
    numbers = {"median_update_ratio": 0.0, "lr": float(case.evidence.lr[-1])}
    return case.finding("update_too_small", "severe" if case.trend.known else "warning", why, numbers)


def _left_out(case: Case) -> list[Finding]:
    """Parameters with a gradient whose weights never changed: no optimizer has them."""
    e = case.evidence
    if not case.unmoved.any() or not len(e.rows) or len(e.steps) < TURNS:
        return []
    typical = np.nanmedian(np.where(e.has_grad, np.nan_to_num(e.rms), 0.0), axis=0)
    left_out = case.unmoved & ~_stepped_on(case)
    columns = np.flatnonzero(left_out & (typical > COUNTS * np.median(typical[~case.unmoved])))
    if not len(columns):
        return []
    columns = np.unique([*columns.tolist(), *_biases_at_zero(case, columns, typical)])
    names = case.names(columns.tolist())
    share = float(e.numel[columns].sum() / max(e.numel.sum(), 1))
    why = (
        f"{len(names)} parameters ({names[0]}, …) have a gradient, but their weights never change: no "
        "optimizer has them, or their learning rate is zero."
    )
    numbers = {"parameters": len(names), "share_of_elements": share, "median_update_ratio": 0.0}
    return [case.finding("update_too_small", "warning", why, numbers, layers=names)]


def _biases_at_zero(case: Case, columns: NDArray[np.int64], typical: NDArray[np.floating]) -> list[int]:
    """The biases beside some matrices that have a gradient, but are zero at every look."""
    zero = (np.nan_to_num(case.evidence.weight_norm) == 0).all(axis=0) & (typical > 0)
    layers = (x for x in case.model.layers if x.weight in set(columns.tolist()))
    return [x.bias for x in layers if x.bias is not None and zero[x.bias]]


def _stepped_on(case: Case) -> NDArray[np.bool_]:
    """[N] whether an optimizer that moves other parameters is known to have the parameter. If its weights do
    not change, its gradient is zero at the step (the last bias of a Wasserstein critic)."""
    names, groups = case.evidence.names, case.evidence.facts.get("optimizers") or []
    moved = {name for name, known in zip(names, case.moved.tolist()) if known}
    active = {g.get("name", "") for g in groups if moved & set(g.get("parameters", ()))}
    listed = {
        name
        for g in groups
        if g.get("name", "") in active and float(g.get("lr") or 0) > 0
        for name in g.get("parameters", ())
    }
    return np.array([name in listed for name in names], dtype=bool)
