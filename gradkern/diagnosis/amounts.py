"""The numbers in remedies, computed from the run: a threshold for clipping, a factor of the learning rate."""

from __future__ import annotations

import math

import numpy as np

from gradkern.diagnosis.case import Case, Floats
from gradkern.diagnosis.optimizer import asked_step

#: ‖Δw‖ / ‖w‖ of a good step. The first steps of healthy runs of a hundred steps have 0.01 … 0.1 (in the
#: middle 0.03). Adam with a rate of 3e-4 moves weights of standard deviation 0.02 by 0.015. Of ten runs
#: with a rate that was too small, raising it to steps of 0.01 cured seven; to 0.02 eight, and to 0.03 eight,
#: but one other diverged.
FIRST_STEP, GOOD_STEP = 0.03, 2e-2
#: The smallest and largest factors by which learning rates are lowered and raised.
LEAST_LOWER, MOST_LOWER = 1e-4, 0.3
LEAST_RAISE, MOST_RAISE = 3.0, 1e7
#: Norm at the end over norm at the start from which the norm has exploded.
GREW = 100.0
#: The same for a learning rate, from which its schedule is to blame (warm-up begins at a few percent).
GROWN = 100.0


def max_norm(case: Case) -> float:
    """The 0.9 quantile of the norms. If the run exploded, that of its calm part, which is its start if the
    norm never came down."""
    norm = case.evidence.total_norm
    norm = norm[np.isfinite(norm) & (norm > 0)]
    if not len(norm):
        return 1.0
    early = float(norm[0]) if _exploded(case, norm) else float(np.median(norm[: max(len(norm) // 10, 5)]))
    calm = norm[norm <= 10 * min(float(np.median(norm)), early)]
    return float(np.quantile(calm if len(calm) else norm, 0.9))


def _exploded(case: Case, norm: Floats) -> bool:
    """The norm overflowed, or grew a hundredfold as the loss rose."""
    grew = float(np.median(norm[-5:])) > GREW * float(norm[0])
    return not np.isfinite(case.evidence.total_norm).all() or (grew and case.trend.rose)


def held_norm(case: Case) -> float:
    """The gradient norm at which a step of SGD, with its momentum, moves the weights by `FIRST_STEP`; inf for
    other optimizers, which divide the gradient by its own size."""
    e = case.evidence
    groups = e.facts.get("optimizers") or []
    rates, size = e.lr[np.isfinite(e.lr) & (e.lr > 0)], case.weight_size[np.isfinite(case.weight_size)]
    if not groups or any(group.get("class") != "SGD" for group in groups) or not len(rates) or not len(size):
        return math.inf
    momentum = max(float(group.get("momentum") or 0) for group in groups)
    return float(FIRST_STEP * size[0] * (1 - min(momentum, 0.999)) / rates.max()) or math.inf


def lower_factor(case: Case) -> float:
    """The factor of the learning rate that gives the first steps a good size.

    It is computed from the first step, because later steps of a diverging run are large for that reason. If
    the first step was good, it is computed from the largest of the first half.
    """
    basis = step_to_lower(case)
    return _rounded(float(np.clip(FIRST_STEP / basis, LEAST_LOWER, MOST_LOWER))) if basis else 0.1


def step_to_lower(case: Case) -> float:
    """‖Δw‖ / ‖w‖ of the step from which `lower_factor` is computed; 0 if none is known."""
    movement = _moves(case)
    if not len(movement):
        return 0.0
    first = float(movement[0])
    return first if first > FIRST_STEP else float(movement[: max(len(movement) // 2, 1)].max())


def raise_factor(case: Case) -> float:
    """The factor of the learning rate that lets a step move the weights by `GOOD_STEP`."""
    typical = step_to_raise(case)
    if not typical > 0:
        return LEAST_RAISE
    return _rounded(float(np.clip(GOOD_STEP / typical, LEAST_RAISE, MOST_RAISE)))


def step_to_raise(case: Case) -> float:
    """‖Δw‖ / ‖w‖ of a step, from which `raise_factor` is computed; 0 if none is known."""
    movement = _moves(case)
    asked = asked_step(case) if has_half_weights(case) or not len(movement) else 0.0
    return asked or (float(np.median(movement)) if len(movement) else 0.0)


def rate_is_zero(case: Case) -> bool:
    """Whether the learning rate is known, and 0 at every step."""
    rates = case.evidence.lr[np.isfinite(case.evidence.lr)]
    return bool(len(rates)) and not rates.any()


def rate_grows(case: Case) -> bool:
    """Whether the learning rate still rises at the end, to far more than at first."""
    rates = case.evidence.lr[np.isfinite(case.evidence.lr)]
    return len(rates) > 1 and rates[-1] > rates[-2] and rates[-1] >= GROWN * rates[0] > 0


def rate_plunges(case: Case) -> bool:
    """Whether the learning rate only falls, and is below a hundredth of the first one for half of the run."""
    rates = case.evidence.lr[np.isfinite(case.evidence.lr)]
    falls = len(rates) > 1 and bool((np.diff(rates) <= 0).all())
    return falls and bool(np.median(rates) * GROWN < rates[0])


def has_half_weights(case: Case) -> bool:
    """Whether some weights are held in 16 bits."""
    e = case.evidence
    return any(str(e.params.get(name, {}).get("dtype", "")).endswith("float16") for name in e.names)


def _moves(case: Case) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
    return case.movement[np.isfinite(case.movement) & (case.movement > 0)]


def _rounded(factor: float) -> float:
    """The factor rounded to one digit, as remedies state it."""
    return float(f"{factor:.1g}")
