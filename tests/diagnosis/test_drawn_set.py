"""The set of the diagnosis suite whose faults are drawn: its pairs are those that the draw may take."""

from __future__ import annotations

from collections import Counter

from benchmarks.diagnosis.__main__ import SETS
from benchmarks.diagnosis.build import build_model
from benchmarks.diagnosis.sets.eighth.draw import EACH, SEED, applies
from benchmarks.diagnosis.sets.eighth.faults import CHANGES, eighth_cases
from benchmarks.diagnosis.sets.eighth.healthy import HEALTHY, UNJUDGED


def test_no_recipe_is_that_of_another_set():
    others = {
        recipe for name, chosen in SETS.items() if name != "eighth" for recipe in chosen.recipes.values()
    }

    assert len(set(HEALTHY.values())) == len(HEALTHY)
    assert not others & set(HEALTHY.values())


def test_every_kind_has_as_many_pairs():
    counts = Counter(case.label.kind for case in eighth_cases())

    assert len(counts) == 17 and set(counts.values()) == {EACH}
    assert len({case.name for case in eighth_cases()}) == 17 * EACH


def test_each_drawn_fault_applies_to_its_recipe():
    for case in eighth_cases():
        name, _, fault = case.name.partition("/")

        assert name not in UNJUDGED
        assert applies(case.twin, case.recipe, CHANGES[fault][0], build_model(case.twin, SEED)), case.name
