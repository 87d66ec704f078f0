"""Train, record and judge the labelled suite: ``python -m benchmarks.diagnosis [--set NAME]``.

Prints the figures of a set and lists the misjudged runs. ``--save`` keeps the figures of a first measurement
in benchmarks/results/diagnosis.json and writes them into docs/diagnosis-suite.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import machine

from benchmarks.diagnosis.cures import Outcome
from benchmarks.diagnosis.judge import Verdict, judge_faulty, judge_healthy
from benchmarks.diagnosis.parallel import cure_all, record_all
from benchmarks.diagnosis.registry import SETS
from benchmarks.diagnosis.report import as_history, as_markdown, figures, with_part

DOCS = Path(__file__).resolve().parents[2] / "docs" / "diagnosis-suite.md"


def main() -> int:
    options = _options()
    judge(options.set, options)
    return 0


def judge(name: str, options: argparse.Namespace) -> None:
    """Train, judge and cure the runs of a set; list or save the results."""
    start = time.time()
    chosen = SETS[name]
    cases = {case.name: case for case in chosen.cases()}
    where = options.folder, options.reuse
    runs = [(recipe, seed) for seed in chosen.well for recipe in chosen.recipes.values()]
    runs += [(r, seed) for seed in chosen.sick for c in cases.values() for r in (c.recipe, c.twin)]
    record_all(runs, *where, options.jobs)
    healthies = _shown("healthy", judge_healthy(chosen.recipes, chosen.well, *where, chosen.confirms))
    faulties = _shown("faulty", judge_faulty(cases.values(), chosen.sick, *where))
    curable = [(cases[v.name], v) for v in faulties if v.confirmed and cases[v.name].label.curable]
    outcomes = cure_all(curable, *where, options.jobs)
    result = figures(healthies, faulties, outcomes) | {"seconds": round(time.time() - start)}
    print(as_markdown(result))
    _list(healthies, faulties, outcomes)
    if options.save:
        save(name, result)


def save(name: str, result: dict[str, Any]) -> None:
    """Add the figures to benchmarks/results/diagnosis.json and to the page."""
    known = json.loads((machine.RESULTS / "diagnosis.json").read_text(encoding="utf-8"))
    results = known | {name: {"machine": machine.describe(), **result}}
    machine.save("diagnosis", results)
    DOCS.write_text(with_results(DOCS.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_results(page: str, results: dict[str, Any]) -> str:
    """The page with a line for each set and all figures of the newest one."""
    newest = list(results.values())[-1]
    return with_part(with_part(page, "history", as_history(results)), "figures", as_markdown(newest))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--set", choices=SETS, default=list(SETS)[-1])
    parser.add_argument("--folder", type=Path, default=Path("build/diagnosis"), help="recorded runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes that train")
    parser.add_argument("--reuse", action="store_true", help="take runs that another version has recorded")
    parser.add_argument("--save", action="store_true", help="keep the figures, of a first measurement")
    return parser.parse_args()


def _shown(title: str, verdicts: Iterable[Verdict]) -> list[Verdict]:
    found = []
    for verdict in verdicts:
        found.append(verdict)
        print(f"\r{title}: {len(found)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def _list(healthies: list[Verdict], faulties: list[Verdict], outcomes: list[Outcome]) -> None:
    for v in healthies + faulties:
        if not v.confirmed:
            print(f"unconfirmed: {v.name}, seed {v.seed} {v.run}")
        elif not v.hit:
            said = ", ".join(f"{f.kind} ({f.severity})" for f in v.found) or "nothing"
            print(f"{v.name}, seed {v.seed}: {v.kind or 'healthy'}, but said: {said} {v.run}")
        elif v.kind and not v.layers:
            print(f"{v.name}, seed {v.seed}: {v.kind}, wrong layers: {v.found[0].layers} {v.run}")
    for o in outcomes:
        if not o.cured_by:
            print(f"{o.name}, seed {o.seed}: {o.kind} not cured by {o.actions}")


if __name__ == "__main__":
    sys.exit(main())
