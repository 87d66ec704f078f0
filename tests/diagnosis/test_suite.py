"""A small part of the labelled suite, trained on the spot; the whole: ``python -m benchmarks.diagnosis``."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.diagnosis import cures, faulty, healthy, labels, parallel, score
from benchmarks.diagnosis.__main__ import with_results
from benchmarks.diagnosis.judge import is_strictly_well, judge_faulty, judge_healthy
from benchmarks.diagnosis.recipe import Recipe
from benchmarks.diagnosis.registry import SETS
from benchmarks.diagnosis.sets import second
from benchmarks.diagnosis.sets.fifth.faults import fifth_cases
from benchmarks.diagnosis.sets.fifth.healthy import HEALTHY as FIFTH
from benchmarks.diagnosis.sets.fourth.faults import fourth_cases
from benchmarks.diagnosis.sets.fourth.healthy import HEALTHY as FOURTH
from benchmarks.diagnosis.sets.reported.faults import reported_cases
from benchmarks.diagnosis.sets.reported.healthy import HEALTHY as REPORTED
from benchmarks.diagnosis.sets.third import cases as third
from benchmarks.diagnosis.train import train
from gradkern.diagnosis import Finding, Remedy, diagnose

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="the suite learns from scikit-learn's data sets"
)

ROOT = Path(__file__).parents[2]
SEED = 3
#: Short runs, for every change of the code; longer ones and the whole of a set are integration tests.
HEALTHY = {
    "mlp_digits": {"steps": 40},
    "mlp_deep": {"steps": 30},
    "mlp_tanh": {"steps": 40},
    "mlp_batch_of_1": {"steps": 60},
    "gan": {"steps": 40},
    "experts": {"steps": 40},
}
FAULTY = {
    "mlp_digits/sigmoid_deep": {"steps": 30},
    "mlp_digits/gain_3": {"steps": 30},
    "mlp_digits/constant_init": {"steps": 40},
    "mlp_digits/adam_rate_high": {"steps": 40},
    "mlp_digits/head_left_out": {"steps": 40},
    "mlp_digits/detached": {"steps": 40},
    "mlp_digits/dead_layer": {"steps": 60},
    "mlp_digits/nan_in_head": {"steps": 30},
    "mlp_digits/throttled": {"steps": 40},
}
CASES = {case.name: case for case in faulty.tuning_cases()}


def shortened(name: str) -> faulty.Case:
    case, shorter = CASES[name], FAULTY[name]
    recipe, twin = (dataclasses.replace(r, **shorter) for r in (case.recipe, case.twin))
    return dataclasses.replace(case, recipe=recipe, twin=twin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_run_raises_no_alarm(name: str, folder: Path) -> None:
    recipe = dataclasses.replace(healthy.TUNED[name], **HEALTHY[name])
    (verdict,) = judge_healthy({name: recipe}, [SEED], folder, reuse=False)
    assert verdict.confirmed, "the trace says that the run is not healthy"
    assert not [f.kind for f in verdict.found if f.is_alarm]


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_run_is_named_with_its_layers(name: str, folder: Path) -> None:
    (verdict,) = judge_faulty([shortened(name)], [SEED], folder, reuse=False)
    assert verdict.confirmed, "the trace does not show the symptom"
    assert verdict.hit, [f.kind for f in verdict.found]
    assert verdict.layers, verdict.found[0].layers
    assert verdict.latency < 0.5


def test_first_remedies_cure(folder: Path) -> None:
    case = shortened("mlp_digits/head_left_out")
    (verdict,) = judge_faulty([case], [SEED], folder, reuse=False)
    assert cures.try_cures(case, verdict, folder, reuse=False).cured_by


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_further_seed_of_the_reported_set(folder: Path) -> None:
    """Every third of its cases, with a seed that no figure was taken from; `make diagnose` runs all."""
    recipes = {name: REPORTED[name] for name in list(REPORTED)[::3]}
    well = [v for v in judge_healthy(recipes, [300], folder, reuse=False) if v.confirmed]
    cases = list(reported_cases())[::3]
    sick = [v for v in judge_faulty(cases, [300], folder, reuse=False) if v.confirmed]
    assert len(well) > 20 and len(sick) > 30
    alarms = [v.name for v in well if not v.hit]
    missed = [v.name for v in sick if not v.hit]
    assert len(alarms) <= 1, alarms
    assert len(missed) <= 0.1 * len(sick), missed


def test_several_processes_record_and_cure_as_one_does(tmp_path: Path) -> None:
    case = shortened("mlp_digits/head_left_out")
    runs = [(case.recipe, SEED), (case.twin, SEED), (case.twin, SEED)]
    parallel.record_all(runs, tmp_path, False, jobs=2)
    assert len(list(tmp_path.iterdir())) == 2
    (verdict,) = judge_faulty([case], [SEED], tmp_path, reuse=False)
    two = parallel.cure_all([(case, verdict)], tmp_path, False, jobs=2)
    assert two == parallel.cure_all([(case, verdict)], tmp_path, False, jobs=1) and two[0].cured_by


def test_labels_do_not_hold_of_the_healthy_twin(folder: Path) -> None:
    trace = train(dataclasses.replace(healthy.TUNED["mlp_digits"], steps=40), SEED, folder)[1]
    judged = {name: label for name, label in labels.LABELS.items() if name != "unclipped"}
    assert [name for name, label in judged.items() if label.symptom(trace, trace) is not None] == []


def test_recorded_run_is_taken_again_and_another_seed_is_not(folder: Path) -> None:
    recipe = Recipe(depth=2, steps=12)
    first, again = train(recipe, 1, folder), train(recipe, 1, folder)
    other = train(recipe, 2, folder)
    assert first[0] == again[0] != other[0]
    np.testing.assert_array_equal(first[1].loss, again[1].loss)
    assert not np.array_equal(first[1].loss, other[1].loss)


def test_prefix_is_what_a_run_of_that_length_says(folder: Path) -> None:
    long, short = (train(Recipe(depth=3, steps=steps), SEED, folder)[0] for steps in (40, 20))
    cut, whole = score.prefix(score.evidence_of(long), 20), score.evidence_of(short)
    np.testing.assert_array_equal(cut.steps, whole.steps)
    np.testing.assert_array_equal(cut.rms, whole.rms)
    np.testing.assert_array_equal(cut.update_steps, whole.update_steps)
    assert diagnose(cut) == diagnose(whole)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 300, 0.0, 0.01222), (5, 10, 0.1871, 0.8129), (20, 20, 0.8316, 1.0)]
)
def test_interval_of_clopper_and_pearson(hits: int, count: int, low: float, high: float) -> None:
    assert score.clopper_pearson(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_every_action_is_followed_or_is_advice() -> None:
    files = [
        ROOT / "gradkern" / "diagnosis" / name for name in ("cures.py", "start_cures.py", "step_cures.py")
    ]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    actions = set(re.findall(r'Remedy\(\s*"(\w+)"', source))
    assert "relu" in actions
    assert actions == set(cures.CURES) | set(cures.ADVICE)


def test_the_page_has_the_figures_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "diagnosis.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "diagnosis-suite.md").read_text(encoding="utf-8")
    assert list(results) == [name for name in SETS if name != "tuning"]
    assert page == with_results(page, results)


def _recipes(side: Callable[[], list[faulty.Case]]) -> set[Recipe]:
    return {case.twin for case in side()}


def test_sets_share_no_recipe() -> None:
    sides = [
        set(healthy.TUNED.values()) | _recipes(faulty.tuning_cases),
        set(REPORTED.values()) | _recipes(reported_cases),
        set(second.HEALTHY.values()) | _recipes(second.second_cases),
        set(third.HEALTHY.values()) | _recipes(third.third_cases),
        set(FOURTH.values()) | _recipes(fourth_cases),
        set(FIFTH.values()) | _recipes(fifth_cases),
    ]
    assert sum(map(len, sides)) == len(set.union(*sides))


@pytest.mark.parametrize("cases", [fourth_cases, fifth_cases])
def test_newer_halves_have_five_cases_of_each_kind(cases: Callable[[], list[faulty.Case]]) -> None:
    kinds = Counter(case.label.kind for case in cases())
    assert len(kinds) == 17
    assert min(kinds.values()) >= 5, kinds


def test_strictly_healthy_runs_have_no_dead_layer_and_end_near_their_lowest_loss(folder: Path) -> None:
    trace = train(dataclasses.replace(healthy.TUNED["mlp_digits"], steps=40), SEED, folder)[1]
    assert is_strictly_well("mlp_digits", trace)
    dead = dataclasses.replace(trace, dead={"blocks.0.activation": 0.9})
    back = dataclasses.replace(
        trace, loss=np.concatenate([trace.loss[:-14], np.full(14, 0.9 * trace.loss[0])])
    )
    assert not is_strictly_well("mlp_digits", dead)
    assert not is_strictly_well("mlp_digits", back)


def test_learning_rate_is_taken_from_the_code_of_the_remedy() -> None:
    remedy = Remedy("lower_lr", "", 'for group in groups:\n    group["lr"] *= 0.03  # 1 becomes 0.03')
    assert cures.CURES["lower_lr"](Recipe(lr=1.0), remedy).lr == pytest.approx(0.03)


def test_layers_are_right_only_where_those_at_fault_are_named_and_few_others() -> None:
    label = labels.LABELS["left_out"]

    class Moved:
        names = ("a", "b", "c")
        moved = np.array([0.0, 0.0, 1.0])
        rms = np.ones((3, 3))

    def right(*layers: str) -> bool:
        return score.right_layers(Finding("update_too_small", "warning", layers), label, Moved())  # type: ignore[arg-type]

    assert right("a", "b") and right("a")
    assert not right("c") and not right("a", "c") and not right()
