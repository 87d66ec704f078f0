"""Train, record and judge the labelled suite: ``python -m benchmarks.diagnosis``.

By default the reported half, whose figures go to benchmarks/results/diagnosis.json and into
docs/diagnosis-suite.md; with ``--half tuning`` the other one, whose misjudged runs are listed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import machine

from benchmarks.diagnosis import faulty, healthy, reported, reported_faults
from benchmarks.diagnosis.cures import Outcome, try_cures
from benchmarks.diagnosis.judge import Verdict, judge_faulty, judge_healthy
from benchmarks.diagnosis.report import as_markdown, figures, with_figures

DOCS = Path(__file__).resolve().parents[2] / "docs" / "diagnosis-suite.md"
#: Seeds of the two halves; healthy runs and faulty ones.
SEEDS = {"tuning": (range(2), range(2)), "reported": (range(200, 204), range(200, 202))}


def main() -> int:
    options = _options()
    start = time.time()
    well, sick = SEEDS[options.half]
    tuning = options.half == "tuning"
    recipes = healthy.TUNED if tuning else reported.HEALTHY
    cases = {c.name: c for c in (faulty.tuning_cases() if tuning else reported_faults.reported_cases())}
    healthies = _shown("healthy", judge_healthy(recipes, well, options.folder, options.reuse))
    faulties = _shown("faulty", judge_faulty(cases.values(), sick, options.folder, options.reuse))
    outcomes = [
        try_cures(cases[v.name], v, options.folder, options.reuse)
        for v in faulties
        if v.confirmed and cases[v.name].label.curable and v.seed == sick[0]
    ]
    result = figures(healthies, faulties, outcomes) | {"seconds": round(time.time() - start)}
    print(as_markdown(result))
    if options.half == "tuning" or options.list:
        _list(healthies, faulties, outcomes)
    else:
        machine.save("diagnosis", {"machine": machine.describe(), "reported": result})
        text = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(with_figures(text, as_markdown(result)), encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--half", choices=SEEDS, default="reported")
    parser.add_argument("--folder", type=Path, default=Path("build/diagnosis"), help="recorded runs")
    parser.add_argument("--reuse", action="store_true", help="take runs that another version has recorded")
    parser.add_argument("--list", action="store_true", help="list misjudged runs instead of saving figures")
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
