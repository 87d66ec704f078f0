"""The sets of labelled runs by name, in the order in which they were written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.diagnosis import faulty, healthy
from benchmarks.diagnosis.faulty import Case
from benchmarks.diagnosis.judge import is_strictly_well, is_well
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.sets import second
from benchmarks.diagnosis.sets.eighth.faults import eighth_cases
from benchmarks.diagnosis.sets.eighth.healthy import HEALTHY as EIGHTH
from benchmarks.diagnosis.sets.fifth.faults import fifth_cases
from benchmarks.diagnosis.sets.fifth.healthy import HEALTHY as FIFTH
from benchmarks.diagnosis.sets.fourth.faults import fourth_cases
from benchmarks.diagnosis.sets.fourth.healthy import HEALTHY as FOURTH
from benchmarks.diagnosis.sets.ninth.faults import ninth_cases
from benchmarks.diagnosis.sets.ninth.healthy import HEALTHY as NINTH
from benchmarks.diagnosis.sets.reported.faults import reported_cases
from benchmarks.diagnosis.sets.reported.healthy import HEALTHY as REPORTED
from benchmarks.diagnosis.sets.seventh.faults import seventh_cases
from benchmarks.diagnosis.sets.seventh.healthy import HEALTHY as SEVENTH
from benchmarks.diagnosis.sets.sixth.faults import sixth_cases
from benchmarks.diagnosis.sets.sixth.healthy import HEALTHY as SIXTH
from benchmarks.diagnosis.sets.third import cases as third
from benchmarks.diagnosis.trace import Trace

__all__ = ["SETS", "RunSet"]


@dataclass(frozen=True)
class RunSet:
    """Recipes and cases, and the seeds of healthy and faulty runs."""

    recipes: dict[str, Recipe]
    cases: Callable[[], list[Case]]
    well: range
    sick: range
    confirms: Callable[[str, Trace], bool] = is_well
    """Whether a trace is that of a healthy run."""


SETS = {
    "tuning": RunSet(
        healthy.TUNED | second.HEALTHY,
        lambda: [*faulty.tuning_cases(), *second.second_cases()],
        range(2),
        range(2),
    ),
    "reported": RunSet(REPORTED, reported_cases, range(200, 204), range(200, 201)),
    "third": RunSet(third.HEALTHY, third.third_cases, range(500, 503), range(500, 503)),
    "fourth": RunSet(FOURTH, fourth_cases, range(800, 803), range(800, 802), is_strictly_well),
    "fifth": RunSet(FIFTH, fifth_cases, range(1100, 1103), range(1100, 1102), is_strictly_well),
    "sixth": RunSet(SIXTH, sixth_cases, range(1400, 1403), range(1400, 1402), is_strictly_well),
    "seventh": RunSet(SEVENTH, seventh_cases, range(1700, 1703), range(1700, 1702), is_strictly_well),
    "eighth": RunSet(EIGHTH, eighth_cases, range(1900, 1903), range(1900, 1902), is_strictly_well),
    "ninth": RunSet(NINTH, ninth_cases, range(2100, 2103), range(2100, 2102), is_strictly_well),
}
