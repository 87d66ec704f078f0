"""Runs judged: a healthy one by its alarms, a faulty one by its headline, once its label is confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.diagnosis.baselines import BASELINES
from benchmarks.diagnosis.faulty import Case
from benchmarks.diagnosis.healthy import UNJUDGED
from benchmarks.diagnosis.labels import fall, unreached
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.score import evidence_of, hit, latency, prefix, right_layers
from benchmarks.diagnosis.sets.eighth.healthy import UNJUDGED as UNJUDGED_EIGHTH
from benchmarks.diagnosis.sets.fourth.healthy import UNJUDGED as UNJUDGED_FOURTH
from benchmarks.diagnosis.sets.ninth.healthy import UNJUDGED as UNJUDGED_NINTH
from benchmarks.diagnosis.sets.reported.healthy import UNJUDGED as UNJUDGED_REPORTED
from benchmarks.diagnosis.sets.seventh.healthy import UNJUDGED as UNJUDGED_SEVENTH
from benchmarks.diagnosis.sets.sixth.healthy import UNJUDGED as UNJUDGED_SIXTH
from benchmarks.diagnosis.sets.third.cases import UNJUDGED as UNJUDGED_THIRD
from benchmarks.diagnosis.trace import Trace
from benchmarks.diagnosis.train import train
from gradkern.diagnosis import Finding, diagnose

__all__ = ["Verdict", "is_strictly_well", "is_well", "judge_faulty", "judge_healthy"]

#: The loss of a healthy run falls by at least this fraction.
LEARNS = 0.1
#: In a strictly healthy run, less than this fraction of a ReLU layer's units is zero for every input.
DEAD = 0.8
#: Strictly healthy runs whose loss may stay or return.
_FREE = UNJUDGED_FOURTH | UNJUDGED_SIXTH | UNJUDGED_SEVENTH | UNJUDGED_EIGHTH | UNJUDGED_NINTH
#: Steps at which a monitor diagnoses during a run.
ONLINE = (10, 20, 50, 100)


@dataclass
class Verdict:
    """The diagnosis of one run, judged."""

    name: str
    seed: int
    kind: str
    """The kind it is labelled with; "" for a healthy run."""
    confirmed: bool
    """Whether the trace agrees with the label."""
    found: list[Finding] = field(default_factory=list)
    hit: bool = False
    """Whether the headline is right; for a healthy run, whether there is no alarm."""
    exact: bool = False
    """Whether the headline is the expected kind itself, not one that is tolerated."""
    quiet_online: bool = True
    """For a healthy run: whether there is no alarm at the steps of `ONLINE`."""
    layers: bool = False
    latency: float = float("inf")
    baselines: dict[str, frozenset[str]] = field(default_factory=dict)
    """Kinds that each baseline reports."""
    baseline_hits: dict[str, bool] = field(default_factory=dict)
    run: Path = Path()

    @property
    def headline(self) -> str:
        """The kind of the first alarm, or the kind of an "info" finding if that is the label."""
        if self.kind in ("never_clipping", "loss_not_decreasing") and self.hit:
            return self.kind
        return self.found[0].kind if self.found and self.found[0].is_alarm else ""


def is_well(name: str, trace: Trace) -> bool:
    """Whether everything is finite, the weights move, and the loss falls if it has to."""
    finite = bool(np.isfinite(trace.loss).all() and not np.isinf(trace.rms).any())
    moves = bool(trace.moved[list(trace.matrices)].max() > 1e-5)
    may_stay = name in UNJUDGED | UNJUDGED_REPORTED | UNJUDGED_THIRD | _FREE
    return finite and moves and (may_stay or fall(trace) > LEARNS)


def is_strictly_well(name: str, trace: Trace) -> bool:
    """Whether `is_well`, no ReLU layer is dead, every parameter has a gradient, and the loss ends near its
    lowest.

    By thirds of the run: the mean loss of the last third exceeds the lowest one by at most a fifth of the
    fall.
    """
    if not is_well(name, trace):
        return False
    alive = max(trace.dead.values(), default=0.0) < DEAD
    reached = not unreached(trace)
    thirds = [float(part.mean()) for part in np.array_split(trace.loss, 3)]
    returns = thirds[-1] > min(thirds) + 0.2 * (float(trace.loss[:3].mean()) - min(thirds))
    return alive and reached and (name in _FREE or not returns)


def judge_healthy(
    recipes: Mapping[str, Recipe],
    seeds: Iterable[int],
    folder: Path,
    reuse: bool,
    confirms: Callable[[str, Trace], bool] = is_well,
) -> Iterator[Verdict]:
    for seed in seeds:
        for name, recipe in recipes.items():
            run, trace = train(recipe, seed, folder, reuse=reuse)
            evidence = evidence_of(run)
            found = diagnose(evidence)
            early = [diagnose(prefix(evidence, n)) for n in ONLINE if n < len(evidence.steps)]
            yield Verdict(
                name,
                seed,
                "",
                confirmed=confirms(name, trace),
                found=found,
                hit=not _alarms(found),
                quiet_online=not any(_alarms(f) for f in early),
                baselines={b: rules(evidence) for b, rules in BASELINES.items()},
                run=run,
            )


def judge_faulty(cases: Iterable[Case], seeds: Iterable[int], folder: Path, reuse: bool) -> Iterator[Verdict]:
    for seed in seeds:
        for case in cases:
            yield _judge(case, seed, folder, reuse)


def _judge(case: Case, seed: int, folder: Path, reuse: bool) -> Verdict:
    run, trace = train(case.recipe, seed, folder, reuse=reuse)
    twin = train(case.twin, seed, folder, reuse=reuse)[1]
    label = case.label
    onset = label.symptom(trace, twin)
    verdict = Verdict(case.name, seed, label.kind, confirmed=onset is not None, run=run)
    if onset is None:
        return verdict
    evidence = evidence_of(run)
    verdict.found = diagnose(evidence)
    verdict.hit = hit(verdict.found, label)
    verdict.exact = verdict.hit and verdict.headline == label.kind
    right = [f for f in verdict.found[:1] if f.kind in label.kinds]
    verdict.layers = any(right_layers(f, label, trace) for f in right)
    verdict.latency = latency(evidence, label, onset)
    verdict.baselines = {b: rules(evidence) for b, rules in BASELINES.items()}
    verdict.baseline_hits = {b: bool(kinds & label.kinds) for b, kinds in verdict.baselines.items()}
    return verdict


def _alarms(found: Iterable[Finding]) -> list[Finding]:
    return [f for f in found if f.is_alarm]
