"""Rules for parameters without a gradient, and for units whose gradient is exactly zero.

May be wrong if a branch is unused on purpose for the whole run (an expert that is never chosen, a head that
is not trained yet), and if outputs are masked, so that their bias has zeros without a ReLU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradkern._util.text import percent
from gradkern.diagnosis.case import FEW_STEPS, Case
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.model import LEAKY, RECURRENT, Layer, role_of
from gradkern.diagnosis.rules.blocked import behind_frozen, blocked, kind_of_silence, unfed
from gradkern.diagnosis.rules.outputs import gated_outputs

#: A layer is silent after so many steps with a gradient of exactly zero while others have one.
SILENT_STEPS = 20
#: A side branch (a gate of a few units) with less than this part of the weights, in a model whose loss lost
#: this part, is no reason to stop.
SMALL_BRANCH, LEARNED = 0.05, 0.5
#: Steps in which an expert gets its turn.
SIBLINGS_WAIT = 50
#: Part of a bias's gradient that is zero at every step. Healthy ReLU layers at a batch of one reach 0.39 at
#: their minimum over steps; layers with dead units start at 0.7.
DEAD_SHARE = 0.7
NEARLY_ALL = 0.95
#: Zeros are counted at a few early steps only: so many of them tell, if the share is this high or the same
#: units never had a gradient before. (With one input a step, sparse units look dead at three steps in a row.)
FEW_LOOKS, CERTAIN = 3, 0.9
#: Part of a matrix's elements that ever had a gradient; of a layer and the one before it together.
EVER_NONZERO = 0.3


def no_gradient(case: Case) -> list[Finding]:
    """Trainable parameters that never had a gradient; or none has one that is not zero."""
    e = case.evidence
    if len(e.rows) < 2:
        return []
    never = ~e.has_grad.any(axis=0)
    trainable = np.array([case.model.trainable(i) for i in range(len(e.names))], dtype=bool)
    if len(e.rows) >= SILENT_STEPS and e.has_loss.all() and not e.loss.any() and not e.total_norm.any():
        why = "The loss and all gradients are exactly zero at every step: nothing reaches the loss."
        return [case.finding("no_gradient", "severe", why, {"parameters": int(trainable.sum())})]
    if (never | ~trainable).all() and trainable.any():
        return [_none_at_all(case, int(trainable.sum()))]
    columns = np.flatnonzero(never & trainable)
    if not len(columns):
        return []
    listed, conditional = _in_an_optimizer(case), _conditional_roles(case)
    asked = [c for c in columns.tolist() if listed is None or e.names[c] in listed]
    asked = [c for c in asked if role_of(e.names[c]) not in conditional]
    if len(e.steps) < SIBLINGS_WAIT:  # one of several alike may yet get its turn
        seen = {role_of(e.names[c]) for c in np.flatnonzero(~never).tolist()}
        asked = [c for c in asked if role_of(e.names[c]) not in seen]
    layers = case.names(asked or columns.tolist())
    share = float(e.numel[columns].sum() / max(e.numel[trainable].sum(), 1))
    why = (
        f"{len(layers)} trainable parameters ({layers[0]}, …) had no gradient in any of {len(e.steps)} "
        "steps: they are not used, or cut off by detach() or no_grad()."
    )
    numbers = {"parameters": len(layers), "share_of_elements": share}
    return [case.finding("no_gradient", "warning" if asked else "info", why, numbers, layers=layers)]


def _none_at_all(case: Case, count: int) -> Finding:
    """No parameter ever had a gradient when it was recorded, although the loss may depend on them: so says
    its graph, or a weight that moves, which an optimizer leaves where it is without a gradient."""
    if not (case.evidence.facts.get("graph") or {}).get("order") and not case.moved.any():
        why = "No trainable parameter has ever had a gradient, so nothing is learned. Was backward() called?"
        return case.finding("no_gradient", "severe", why, {"parameters": count})
    why = (
        "No trainable parameter had a gradient when it was recorded, although the loss depends on them: "
        "backward() was not called before, or zero_grad() was called between backward() and record()."
    )
    return case.finding("no_gradient", "severe", why, {"parameters": count, "reached": 1.0})


def _conditional_roles(case: Case) -> set[str]:
    """Roles whose members are absent from some steps: experts, heads in turn."""
    e = case.evidence
    often = e.has_grad.mean(axis=0)
    return {role_of(e.names[c]) for c in np.flatnonzero((often > 0) & (often < 1)).tolist()}


def _in_an_optimizer(case: Case) -> set[str] | None:
    groups = case.evidence.facts.get("optimizers")
    if not groups:
        return None
    return {name for group in groups for name in group.get("parameters", ())}


def dead_units(case: Case) -> list[Finding]:
    """Layers whose gradient is exactly zero, or most of whose units have none, by what explains it."""
    return (
        unfed(case)
        or behind_frozen(case)
        or _silent_layer(case)
        or blocked(case)
        or _dead_share(case)
        or gated_outputs(case)
    )


def _silent_layer(case: Case) -> list[Finding]:
    """The layer nearest the output whose bias has no gradient: before it everything is cut off."""
    e = case.evidence
    zero = e.has_grad & (e.rms == 0)
    alive = np.isfinite(e.total_norm[e.rows])
    tail = np.flatnonzero(alive)[-max(SILENT_STEPS, len(e.rows) // 4) :]
    if len(tail) < SILENT_STEPS:
        return []
    silent = zero[tail].all(axis=0) & ~_zero_weights(case)
    layers = case.model.layers
    dead = [i for i, layer in enumerate(layers) if _is_off(layer, silent)]
    if not dead or _solved(case):
        return []
    index = _nearest_output(layers, dead, silent)
    layer = layers[index]
    if _stops_at_zero(case, layers[index + 1 :]):
        return []
    cut_off = [x for x in layers[:index] if silent[x.weight]]
    onset = _onset(zero[:, layer.weight if layer.bias is None else layer.bias])
    parallel = len(cut_off) < index and any(e.rms[tail][:, x.weight].any() for x in layers[:index])
    severity = "warning" if parallel else "severe"
    if parallel and case.trend.fall > LEARNED and e.numel[layer.weight] < SMALL_BRANCH * e.numel.sum():
        severity = "info"
    kind, reason = kind_of_silence(case, layer, onset == 0)
    why = (
        f"The gradient of {case.evidence.names[layer.weight]} has been exactly zero since step "
        f"{case.step(onset)}: {reason}" + (_cut_off_in_words(len(cut_off)))
    )
    return [
        case.finding(
            kind,
            severity,
            why,
            {"dead_share": 1.0, "layers_cut_off": len(cut_off)},
            layers=case.of_layers([*cut_off, layer] if kind == "no_gradient" else [layer]),
            first=case.step(onset),
        )
    ]


def _cut_off_in_words(layers: int) -> str:
    if not layers:
        return "."
    before = "1 layer before it gets" if layers == 1 else f"{layers} layers before it get"
    return f", and {before} no gradient."


def _is_off(layer: Layer, silent: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> bool:
    """Its units are off: a matrix alone is silent where its input is zero (the first state of a recurrent
    layer that makes one step)."""
    if RECURRENT.search(layer.kind):
        return False
    return bool(silent[layer.weight] and (layer.bias is None or silent[layer.bias]))


def _nearest_output(
    layers: list[Layer], dead: list[int], silent: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> int:
    """Blame by the bias: behind a dead layer the matrix has no gradient (its input is zero), the bias has."""
    with_bias = [i for i in dead if layers[i].bias is not None and silent[layers[i].bias or 0]]
    if with_bias:
        return with_bias[-1]
    return max(dead[-1] - 1, 0) if layers[dead[-1]].bias is None and dead[-1] - 1 in dead else dead[-1]


def _zero_weights(case: Case) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[N] weights that are zero themselves: the initialization is at fault. A bias of zero does not switch
    units off, so that a layer with one is silent because of another."""
    norms = case.evidence.weight_norm
    if not len(norms):
        return np.zeros(len(case.evidence.names), dtype=bool)
    return np.asarray((norms == 0).all(axis=0))


def _stops_at_zero(case: Case, behind: list[Layer]) -> bool:
    """Whether a matrix of zeros nearer the output lets no gradient through."""
    zero = _zero_weights(case)
    return any(zero[layer.weight] for layer in behind)


def _solved(case: Case) -> bool:
    """A loss of exactly zero (a margin that is kept) leaves nothing to learn."""
    losses = case.evidence.loss[np.isfinite(case.evidence.loss)]
    return bool(len(losses)) and float(np.median(np.abs(losses[-SILENT_STEPS:]))) == 0.0


def _onset(zero: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """The first row of the last run of True."""
    other = np.flatnonzero(~zero)
    return int(other[-1]) + 1 if len(other) and other[-1] + 1 < len(zero) else 0


def _dead_share(case: Case) -> list[Finding]:
    """Layers most of whose units never get a gradient, by the zeros in their bias."""
    model = case.model
    if model.knows_activations and not model.gates:
        return []
    shares: dict[int, float] = {}
    layers = model.layers[:-1]  # nothing gates the outputs
    for index, layer in enumerate(layers):
        share = _bias_share(case, layer)
        if share is None and index and layer.bias is None:
            share = _matrix_share(case, layer)
        if share is not None and share >= DEAD_SHARE and not _leaks(case, layer):
            shares[index] = share
    if not shares:
        return []
    worst = max(shares.values())
    named = case.of_layers([layers[i] for i in shares])
    first = min(_dead_since(case, layers[i]) for i in shares)
    since = "at any step" if first <= case.evidence.steps[0] else f"from step {first} on"
    why = (
        f"In {named[0]}, {percent(worst)} of the units get no gradient {since}: they are inactive for "
        "all inputs."
    )
    severity = "severe" if worst >= NEARLY_ALL and not case.trend.fell else "warning"
    numbers = {"dead_share": worst, "layers": len(shares)}
    return [case.finding("dead_units", severity, why, numbers, layers=named, first=first)]


def _leaks(case: Case, layer: Layer) -> bool:
    """Whether the next module of a Sequential lets some gradient through for every input. Zeros then say that
    the terms of a bias's gradient cancel (a Wasserstein critic's: as many with each sign)."""
    modules = {str(n): str(k) for n, k in case.evidence.facts.get("modules", {}).items()}
    name = case.evidence.names[layer.weight].rpartition(".")[0]
    parent = name.rpartition(".")[0]
    siblings = [n for n in modules if n and n.rpartition(".")[0] == parent]
    if modules.get(parent) != "Sequential" or name not in siblings[:-1]:
        return False
    return modules[siblings[siblings.index(name) + 1]].lower() in LEAKY


def _counted(case: Case, column: int) -> NDArray[np.int64]:
    """The rows in which the zeros of a gradient that is not zero are counted."""
    e = case.evidence
    return np.flatnonzero((e.zeros[:, column] >= 0) & (e.rms[:, column] > 0))


def _dead_since(case: Case, layer: Layer) -> int:
    """The first step from which most of a layer's units get no gradient at any step that is counted."""
    e = case.evidence
    rows = _counted(case, layer.bias) if layer.bias is not None else np.zeros(0, dtype=np.int64)
    if not len(rows):
        return int(e.steps[0])
    alive = e.zeros[rows, layer.bias] < DEAD_SHARE * e.numel[layer.bias]
    at = rows[min(_onset(~alive), len(rows) - 1)]
    return case.step(int(at)) if alive.any() else int(e.steps[0])


def _bias_share(case: Case, layer: Layer) -> float | None:
    e = case.evidence
    if layer.bias is None:
        return None
    rows = _counted(case, layer.bias)
    rows = rows[len(rows) // 2 :]
    if len(rows) < FEW_LOOKS:
        return None
    share = float(e.zeros[rows, layer.bias].min() / max(e.numel[layer.bias], 1))
    never = 1 - float(e.ever_nonzero[layer.bias])
    if len(rows) >= FEW_STEPS or share >= CERTAIN:
        return share
    return min(share, never) if np.isfinite(never) else None


def _matrix_share(case: Case, layer: Layer) -> float | None:
    ever = float(case.evidence.ever_nonzero[layer.weight])
    if not np.isfinite(ever) or len(case.evidence.steps) < SILENT_STEPS or ever > EVER_NONZERO or ever == 0:
        return None
    return 1 - ever
