"""The sets of the diagnosis suite whose faults are drawn: their pairs are those that the draw may take."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.diagnosis.build import build_model
from benchmarks.diagnosis.draw import DRAWINGS, applies, drawn
from benchmarks.diagnosis.registry import SETS

NAMES = tuple(DRAWINGS)


@pytest.mark.parametrize("name", NAMES)
def test_drawing_is_of_the_set_and_its_first_seed(name: str) -> None:
    drawing, chosen = DRAWINGS[name], SETS[name]

    assert drawing.recipes == chosen.recipes
    assert chosen.well[0] == chosen.sick[0] == drawing.seed
    assert drawing.unjudged < set(chosen.recipes)


@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_is_that_of_another_set(name: str) -> None:
    recipes = list(SETS[name].recipes.values())
    others = {recipe for other, chosen in SETS.items() if other != name for recipe in chosen.recipes.values()}

    assert len(set(recipes)) == len(recipes)
    assert not others & set(recipes)


@pytest.mark.parametrize("name", NAMES)
def test_no_seed_is_that_of_another_set(name: str) -> None:
    seeds = {*SETS[name].well, *SETS[name].sick}

    assert not [other for other, s in SETS.items() if other != name and seeds & {*s.well, *s.sick}]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_has_as_many_pairs(name: str) -> None:
    cases, each = SETS[name].cases(), DRAWINGS[name].each
    counts = Counter(case.label.kind for case in cases)

    assert len(counts) == 17 and set(counts.values()) == {each}
    assert len({case.name for case in cases}) == 17 * each


@pytest.mark.parametrize("name", NAMES)
def test_each_drawn_fault_applies_to_its_recipe(name: str) -> None:
    drawing = DRAWINGS[name]
    for case in SETS[name].cases():
        recipe, _, fault = case.name.partition("/")

        assert recipe not in drawing.unjudged
        model = build_model(case.twin, drawing.seed)
        assert applies(case.twin, case.recipe, drawing.changes[fault][0], model), case.name


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_among_those_drawn(name: str) -> None:
    pairs = drawn(DRAWINGS[name])

    for case in SETS[name].cases():
        assert tuple(case.name.split("/")) in pairs[case.label.kind], case.name
