"""The faulty runs of the eighth set: healthy ones of `eighth`, with faults of earlier sets, paired by chance.

`eighth_draw` has drawn the pairs with ``random.Random(8)``: nine for each expected kind, from all pairs of a
recipe and a fault that applies to it. Pairs whose label the trace at the first seed does not confirm, whose
twin is not healthy or that cannot be built were replaced by the next ones drawn.
"""

from __future__ import annotations

from benchmarks.diagnosis import fifth_faults, fourth_faults, seventh_faults, sixth_faults
from benchmarks.diagnosis.eighth import HEALTHY
from benchmarks.diagnosis.faulty import Case, Change, cases_of

__all__ = ["CHANGES", "eighth_cases"]

#: Name of the fault: (key of `LABELS`, what it does to a recipe); of equal names, the latest.
CHANGES: dict[str, tuple[str, Change]] = {
    **fourth_faults.CHANGES,
    **fifth_faults.CHANGES,
    **sixth_faults.CHANGES,
    **seventh_faults.CHANGES,
}

#: The faults that are applied to each healthy recipe.
_PAIRS: dict[str, str] = {}


def eighth_cases() -> list[Case]:
    """Each case of the eighth set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
