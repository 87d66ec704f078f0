"""Labels of runs, confirmed by traces of a run and its twin in plain torch, never by gradkern's numbers.

A symptom is a function (trace, twin) -> onset: the step (from 1) at which it begins, or None where the run
does not have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.diagnosis.trace import Trace

__all__ = ["LABELS", "Label", "fall", "reaches"]

Symptom = Callable[[Trace, Trace], int | None]
Names = Callable[[Trace], frozenset[str]]
#: The loss of a cured run falls by at least this fraction of its twin's fall; that of a sick run does not.
SHARE_OF_FALL = 0.8


@dataclass(frozen=True)
class Label:
    """What a diagnosis should find."""

    kind: str
    also: frozenset[str]
    """Other kinds that are true."""
    symptom: Symptom
    needed: Names
    """Parameters at fault, of which at least half have to be named; empty for the whole model."""
    allowed: Names
    """Parameters that may be named."""
    curable: bool = True

    @property
    def kinds(self) -> frozenset[str]:
        return self.also | {self.kind}


def end(trace: Trace) -> float:
    """Mean loss of the last tenth of the run; inf if one of these losses is not finite."""
    tail = trace.loss[-max(len(trace.loss) // 10, 5) :]
    return float(tail.mean()) if np.isfinite(tail).all() else np.inf


def start(trace: Trace) -> float:
    return float(np.median(trace.loss[:3]))


def fall(trace: Trace) -> float:
    """The fraction of the initial loss that is gone at the end."""
    return (start(trace) - end(trace)) / abs(start(trace))


def reaches(trace: Trace, twin: Trace) -> bool:
    """Whether a run reaches its twin's loss: `SHARE_OF_FALL` of the twin's fall, from the twin's start."""
    return end(trace) <= start(twin) - SHARE_OF_FALL * (start(twin) - end(twin))


def _worse(onset: int, trace: Trace, twin: Trace) -> int | None:
    return None if reaches(trace, twin) else onset


# ---- symptoms ----


def _weights(trace: Trace) -> list[int]:
    """Matrices in the order of the model, without those that the first gradients do not reach."""
    return [i for i in trace.matrices if np.isfinite(trace.rms[:5, i]).any()]


def vanishes(trace: Trace, twin: Trace) -> int | None:
    """The first matrix's gradient is below 1e-4 of the last one's from the start, and the run learns less."""
    chain = _weights(trace)
    early, late = np.median(trace.rms[:20, chain[0]]), np.median(trace.rms[:20, chain[-1]])
    return _worse(1, trace, twin) if early < 1e-4 * late else None


def fades(trace: Trace, twin: Trace) -> int | None:
    """All gradients before the head's are below a hundredth of the twin's, and the run learns less."""
    here = np.median(trace.rms[:10, _weights(trace)[:-1]])
    small = here < 1e-2 * np.median(twin.rms[:10, _weights(twin)[:-1]])
    return _worse(1, trace, twin) if small else None


def explodes_at_start(trace: Trace, twin: Trace) -> int | None:
    """The first norms are 30 times the twin's, or are not finite."""
    first = float(np.median(trace.norm[:3]))
    return 1 if not np.isfinite(first) or first > 30 * float(np.median(twin.norm[:3])) else None


def explodes_later(trace: Trace, twin: Trace) -> int | None:
    """The norm grows to 100 times that of the first steps, or is not finite, and the run learns less."""
    first = float(np.median(trace.norm[:3]))
    large = ~(trace.norm < 100 * first)
    if not large.any() or reaches(trace, twin):
        return None
    return int(np.flatnonzero(~(trace.norm < 10 * first))[0]) + 1


def harms_at_start(trace: Trace, twin: Trace) -> int | None:
    """The first norms are 30 times the twin's, and the run learns less."""
    onset = explodes_at_start(trace, twin)
    return None if onset is None else _worse(onset, trace, twin)


def sums_up(trace: Trace, twin: Trace) -> int | None:
    """The norm grows at most of the first ten steps, in all to ten times, and the run learns less."""
    grows = float((np.diff(trace.norm[:10]) > 0).mean()) >= 0.7
    return _worse(2, trace, twin) if grows and not trace.norm.max() < 10 * trace.norm[0] else None


def nonfinite(trace: Trace, twin: Trace) -> int | None:
    """An element of a gradient is inf or NaN."""
    bad = np.isinf(trace.rms).any(axis=1)
    return int(np.argmax(bad)) + 1 if bad.any() else None


def dead(trace: Trace, twin: Trace) -> int | None:
    """In some ReLU layer at least 0.9 of the units are zero for every input, and the run learns less."""
    return _worse(1, trace, twin) if max(trace.dead.values(), default=0) >= 0.9 else None


def saturates(trace: Trace, twin: Trace) -> int | None:
    """Half the outputs of a sigmoid or tanh layer are at the ends of its range at the first step."""
    return _worse(1, trace, twin) if max(trace.saturated.values(), default=0) >= 0.5 else None


def constant(trace: Trace, twin: Trace) -> int | None:
    """The elements of each matrix are all the same at first."""
    return 1 if (trace.spread[list(trace.matrices)] < 1e-6).all() else None


def without_gradient(trace: Trace, twin: Trace) -> int | None:
    """A trainable parameter never has a gradient, or never one that is not zero."""
    return 1 if unreached(trace) else None


def without_any(trace: Trace, twin: Trace) -> int | None:
    """All gradients are exactly zero at every step."""
    return 1 if not trace.norm.any() else None


def without_effect(trace: Trace, twin: Trace) -> int | None:
    """A parameter's gradient is exactly zero at every step, though the twin's is not and others' are not."""
    return 1 if silent(trace) - silent(twin) and trace.norm.any() else None


def large_updates(trace: Trace, twin: Trace) -> int | None:
    """A step moves the matrices by a fifth of their norm or more, and the run learns less."""
    large = ~(trace.update < 0.2)
    return _worse(int(np.argmax(large)) + 1, trace, twin) if large.any() else None


def small_updates(trace: Trace, twin: Trace) -> int | None:
    """Everything moves by less than 1 % in the run, and the loss has less than a tenth of the twin's fall."""
    moved = float(np.median(trace.moved[list(trace.matrices)]))
    return 1 if moved < 0.01 and fall(trace) < 0.1 * fall(twin) else None


def left_out(trace: Trace, twin: Trace) -> int | None:
    """Some parameters have gradients and never move, though the twin's and others do."""
    return 1 if unmoved(trace) - unmoved(twin) and trace.moved.max() > 1e-3 else None


def grows(trace: Trace, twin: Trace) -> int | None:
    """The weights' norm becomes three times what it was, and more than twice the twin's."""
    size = np.sqrt((trace.weight[:, list(trace.matrices)] ** 2).sum(axis=1))
    other = np.sqrt((twin.weight[-1, list(twin.matrices)] ** 2).sum())
    if size[-1] < 3 * size[0] or size[-1] < 2 * other or not np.isfinite(size).all():
        return None
    return int(np.argmax(size > 1.5 * size[0])) + 1


def collapses(trace: Trace, twin: Trace) -> int | None:
    """The weights' norm falls to a fifth, and the run learns less."""
    size = np.sqrt((trace.weight[:, list(trace.matrices)] ** 2).sum(axis=1))
    return _worse(int(np.argmax(size < 0.7 * size[0])) + 1, trace, twin) if size[-1] < 0.2 * size[0] else None


def spikes(trace: Trace, twin: Trace) -> int | None:
    """One norm is 30 times the median of all and 10 times the second largest outside its neighbourhood."""
    at = int(np.argmax(trace.norm))
    others = np.delete(trace.norm, range(max(at - 1, 0), min(at + 10, len(trace.norm))))
    return at + 1 if trace.norm[at] > max(30 * np.median(trace.norm), 10 * others.max()) else None


def swings(trace: Trace, twin: Trace) -> int | None:
    """In the second half the loss changes direction by much at most steps, and stays above the twin's."""
    tail = trace.loss[len(trace.loss) // 2 :]
    change = np.diff(tail)
    turns = float((change[1:] * change[:-1] < 0).mean())
    wide = np.median(np.abs(change)) > 3 * np.median(np.abs(np.diff(twin.loss[len(twin.loss) // 2 :])))
    return _worse(1, trace, twin) if turns > 0.6 and wide and np.isfinite(tail).all() else None


def stays(trace: Trace, twin: Trace) -> int | None:
    """The loss has less than a tenth of the twin's fall."""
    return 1 if fall(trace) < 0.1 * fall(twin) else None


def clipped_away(trace: Trace, twin: Trace) -> int | None:
    """The twin learns; this run, whose steps differ only by clipping, does not."""
    return _worse(1, trace, twin)


def underflows(trace: Trace, twin: Trace) -> int | None:
    """Most gradient elements are below the smallest normal float16, and the run learns less."""
    return _worse(1, trace, twin) if len(trace.small) and np.median(trace.small[:8]) > 0.5 else None


def unclipped(trace: Trace, twin: Trace) -> int | None:
    return 1


# ---- parameters at fault ----


def nowhere(trace: Trace) -> frozenset[str]:
    return frozenset()


def anywhere(trace: Trace) -> frozenset[str]:
    return frozenset(trace.names)


def faint(trace: Trace) -> frozenset[str]:
    """Matrices whose gradient is below 1e-4 of the largest one's."""
    typical = np.median(trace.rms[:20], axis=0)
    chain = _weights(trace)
    return frozenset(trace.names[i] for i in chain if typical[i] < 1e-4 * typical[chain].max())


def fainter(trace: Trace) -> frozenset[str]:
    """All parameters whose gradient is below a tenth of the largest one's."""
    typical = np.median(trace.rms[:20], axis=0)
    return frozenset(n for n, v in zip(trace.names, typical) if v < 0.1 * np.nanmax(typical))


def unreached(trace: Trace) -> frozenset[str]:
    never = np.isnan(trace.rms).all(axis=0) & ~np.isin(trace.names, list(trace.frozen))
    return frozenset(np.array(trace.names)[never])


def silent(trace: Trace) -> frozenset[str]:
    """Parameters that have a gradient, which is exactly zero at every step."""
    never = ~np.isnan(trace.rms).all(axis=0) & ~np.nan_to_num(trace.rms).any(axis=0)
    return frozenset(np.array(trace.names)[never])


def unmoved(trace: Trace) -> frozenset[str]:
    still = (trace.moved == 0) & (np.nan_to_num(trace.rms).max(axis=0) > 0)
    return frozenset(np.array(trace.names)[still])


def nonfinite_alone(trace: Trace) -> frozenset[str]:
    """Parameters that are not finite in the first bad step; none where most of them are."""
    bad = np.isinf(trace.rms)
    first = bad[int(np.argmax(bad.any(axis=1)))]
    return frozenset(np.array(trace.names)[first]) if first.mean() < 0.5 else frozenset()


def before_dead(trace: Trace) -> frozenset[str]:
    """Parameters of the layer in front of each dead activation."""
    modules = [n.rpartition(".")[0] for n, share in trace.dead.items() if share >= 0.9]
    return frozenset(n for n in trace.names if n.rpartition(".")[0] in {f"{m}.layer" for m in modules})


def before_first_dead(trace: Trace) -> frozenset[str]:
    """Parameters of the first dead layer, which leaves the layers behind it without input."""
    first = next((n for n, share in trace.dead.items() if share >= 0.9), "")
    return frozenset(n for n in trace.names if n.startswith(f"{first.rpartition('.')[0]}.layer."))


# ---- labels ----


def _label(
    kind: str,
    symptom: Symptom,
    *also: str,
    needed: Names = nowhere,
    allowed: Names = anywhere,
    curable: bool = True,
) -> Label:
    return Label(kind, frozenset(also), symptom, needed, allowed, curable)


LABELS: dict[str, Label] = {
    "vanishing": _label("vanishing_gradient", vanishes, needed=faint, allowed=fainter),
    "vanishing_by_init": _label(
        "vanishing_gradient", vanishes, "poor_initialization", needed=faint, allowed=anywhere
    ),
    "zeroed": _label("no_gradient", without_any, "dead_units", "poor_initialization"),
    "vanishing_signal": _label("vanishing_gradient", fades, "poor_initialization"),
    "wrong_gain": _label("poor_initialization", harms_at_start, "exploding_gradient", "nonfinite_gradient"),
    "exploding": _label(
        "exploding_gradient", explodes_later, "nonfinite_gradient", "update_too_large", "weight_growth"
    ),
    "diverging": _label(
        "update_too_large", explodes_later, "exploding_gradient", "nonfinite_gradient", "weight_growth"
    ),
    "nonfinite": _label("nonfinite_gradient", nonfinite, needed=nonfinite_alone),
    "dead": _label("dead_units", dead, needed=before_first_dead, allowed=before_dead),
    "dead_by_steps": _label(
        "dead_units", dead, "update_too_large", "exploding_gradient", "nonfinite_gradient"
    ),
    "saturated": _label(
        "saturation", saturates, "poor_initialization", "vanishing_gradient", "exploding_gradient"
    ),
    "constant": _label("poor_initialization", constant, "exploding_gradient"),
    "zero_weights": _label("poor_initialization", constant, "no_gradient", "dead_units"),
    "no_gradient": _label(
        "no_gradient", without_gradient, needed=unreached, allowed=unreached, curable=False
    ),
    "blocked": _label(
        "no_gradient", without_effect, "dead_units", needed=silent, allowed=silent, curable=False
    ),
    "large_steps": _label(
        "update_too_large",
        large_updates,
        "dead_units",
        "saturation",
        "loss_oscillating",
        "exploding_gradient",
        "nonfinite_gradient",
        "weight_growth",
    ),
    "small_steps": _label("update_too_small", small_updates),
    "left_out": _label("update_too_small", left_out, needed=unmoved, allowed=unmoved),
    "growth": _label("weight_growth", grows, "update_too_large", "exploding_gradient"),
    "collapse": _label("weight_collapse", collapses),
    "spike": _label("gradient_spike", spikes, "exploding_gradient"),
    "swings": _label("loss_oscillating", swings, "update_too_large"),
    "alternating": _label("loss_oscillating", swings),
    "large_inputs": _label(
        "exploding_gradient",
        harms_at_start,
        "poor_initialization",
        "saturation",
        "update_too_large",
        "nonfinite_gradient",
    ),
    "summed": _label(
        "exploding_gradient",
        sums_up,
        "loss_oscillating",
        "update_too_large",
        "weight_growth",
        "dead_units",
        "nonfinite_gradient",
    ),
    "underflow": _label("low_precision_underflow", underflows),
    "throttled": _label("always_clipping", clipped_away, "update_too_small"),
    "stays": _label("loss_not_decreasing", stays, curable=False),
    "unclipped": _label("never_clipping", unclipped, curable=False),
}
