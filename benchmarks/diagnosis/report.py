"""The figures of judged runs: as plain values for JSON, and as a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.diagnosis.baselines import BASELINES
from benchmarks.diagnosis.cures import Outcome
from benchmarks.diagnosis.judge import Verdict
from benchmarks.diagnosis.score import clopper_pearson

__all__ = ["as_history", "as_markdown", "figures", "with_part"]

#: The markers around a generated part of a page.
BEGIN, END = "<!-- {name} -->\n", "<!-- end: {name} -->\n"


def rate(hits: int, count: int) -> dict[str, Any]:
    low, high = clopper_pearson(hits, count) if count else (float("nan"), float("nan"))
    return {"count": hits, "of": count, "rate": hits / max(count, 1), "interval_95": [low, high]}


def figures(
    healthy: Sequence[Verdict], faulty: Sequence[Verdict], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """All figures of one set. Runs whose trace does not confirm the label are counted and left out."""
    well = [v for v in healthy if v.confirmed]
    sick = [v for v in faulty if v.confirmed]
    found = [v for v in sick if v.hit]
    late = np.array([v.latency for v in sick])
    return {
        "healthy_runs": len(well),
        "healthy_kinds_of_runs": len({v.name for v in well}),
        "faulty_runs": len(sick),
        "faulty_cases": len({v.name for v in sick}),
        "seeds": sorted({v.seed for v in well}),
        "unconfirmed": {
            "healthy": sorted(f"{v.name}, seed {v.seed}" for v in healthy if not v.confirmed),
            "faulty": sorted(f"{v.name}, seed {v.seed}" for v in faulty if not v.confirmed),
        },
        "misjudged": _misjudged(well, sick, outcomes),
        "false_alarms": rate(sum(not v.hit for v in well), len(well)),
        "false_alarms_online": rate(sum(not v.quiet_online for v in well), len(well)),
        "recall": rate(len(found), len(sick)),
        "recall_of_the_expected_kind": rate(sum(v.exact for v in sick), len(sick)),
        "right_layer": rate(sum(v.layers for v in found), len(found)),
        "cured_by_first_or_second": rate(sum(o.cured_by > 0 for o in outcomes), len(outcomes)),
        "cured_by_first": rate(sum(o.cured_by == 1 for o in outcomes), len(outcomes)),
        "median_latency_of_run": float(np.median(late)) if len(late) else float("nan"),
        "recall_by_kind": {
            kind: rate(sum(v.hit for v in sick if v.kind == kind), sum(v.kind == kind for v in sick))
            for kind in sorted({v.kind for v in sick})
        },
        "confusion": _confusion(sick + well),
        "baselines": {name: _baseline(name, well, sick) for name in BASELINES},
    }


def _misjudged(
    well: Sequence[Verdict], sick: Sequence[Verdict], outcomes: Sequence[Outcome]
) -> dict[str, list[str]]:
    """Every run that was judged wrong, by name."""
    return {
        "false_alarms": [f"{v.name}, seed {v.seed}: {_alarms(v)}" for v in well if not v.hit],
        "missed": [
            f"{v.name}, seed {v.seed}: {v.kind}, said {_alarms(v) or 'nothing'}" for v in sick if not v.hit
        ],
        "wrong_layers": [f"{v.name}, seed {v.seed}: {v.headline}" for v in sick if v.hit and not v.layers],
        "not_cured": [f"{o.name}: {o.kind}, {' then '.join(o.actions)}" for o in outcomes if not o.cured_by],
    }


def _alarms(verdict: Verdict) -> str:
    return ", ".join(f.kind for f in verdict.found if f.is_alarm)


def _confusion(verdicts: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """Label, then headline ("healthy" where there is no alarm)."""
    table: dict[str, Counter[str]] = {}
    for v in verdicts:
        table.setdefault(v.kind or "healthy", Counter())[v.headline or "healthy"] += 1
    return {kind: dict(row.most_common()) for kind, row in sorted(table.items())}


def _baseline(name: str, well: Sequence[Verdict], sick: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "recall": rate(sum(v.baseline_hits[name] for v in sick), len(sick)),
        "any_alarm_on_faulty": rate(sum(bool(v.baselines[name]) for v in sick), len(sick)),
        "false_alarms": rate(sum(bool(v.baselines[name]) for v in well), len(well)),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The figures of a set as text and tables."""
    left_out = {side: len(names) for side, names in result["unconfirmed"].items()}
    lines = [
        f"{result['healthy_runs']} healthy runs of {result['healthy_kinds_of_runs']} recipes and "
        f"{result['faulty_runs']} faulty runs of {result['faulty_cases']} cases; {left_out['healthy']} and "
        f"{left_out['faulty']} runs were left out, whose trace did not confirm the label.",
        "",
        *_table_of_rates(result),
        "",
        *_table_of_tools(result),
        "",
        *_table_of_kinds(result),
        *_lists(result["misjudged"]),
    ]
    return "\n".join(lines) + "\n"


def with_part(page: str, name: str, text: str) -> str:
    """The page with the generated part of that name replaced."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def as_history(results: dict[str, dict[str, Any]]) -> str:
    """One line for each set."""
    lines = [
        "| Set | False alarms | Recall | Right layers | Cured by the first or second remedy | Delay "
        "| Best other tool: recall, and fewest false alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = ("false_alarms", "recall", "right_layer", "cured_by_first_or_second")
    for name, result in results.items():
        tools = result["baselines"].values()
        recall = max(tool["recall"]["rate"] for tool in tools)
        alarms = min(tool["false_alarms"]["rate"] for tool in tools)
        cells = [name.capitalize(), *(_cell(result[key]) for key in keys)]
        cells += [f"{result['median_latency_of_run']:.0%}", f"{recall:.0%}, {alarms:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table_of_rates(result: dict[str, Any]) -> list[str]:
    lines = ["| Figure | Value | 95 % interval |", "|---|---|---|"]
    for title, key in (
        ("False alarms on healthy runs", "false_alarms"),
        ("False alarms at steps 10, 20, 50, 100", "false_alarms_online"),
        ("Recall: the headline is the expected kind or a tolerated one", "recall"),
        ("Recall: the headline is the expected kind itself", "recall_of_the_expected_kind"),
        ("Right layers", "right_layer"),
        ("Cured by the first remedy", "cured_by_first"),
        ("Cured by the first or second remedy", "cured_by_first_or_second"),
    ):
        lines.append(f"| {title} | {_cell(result[key])} | {_interval(result[key])} |")
    late = result["median_latency_of_run"]
    return [*lines, f"| Median part of the run from the onset to the right headline | {late:.0%} | |"]


def _table_of_tools(result: dict[str, Any]) -> list[str]:
    lines = ["| Tool | Recall | False alarms |", "|---|---|---|"]
    lines.append(f"| gradkern (headline) | {_cell(result['recall'])} | {_cell(result['false_alarms'])} |")
    for name, row in result["baselines"].items():
        lines.append(f"| {name} (any rule) | {_cell(row['recall'])} | {_cell(row['false_alarms'])} |")
    return lines


def _table_of_kinds(result: dict[str, Any]) -> list[str]:
    lines = ["| Expected kind | Recall | Headlines |", "|---|---|---|"]
    for kind, row in result["recall_by_kind"].items():
        heads = ", ".join(f"{k} {n}" for k, n in result["confusion"][kind].items())
        lines.append(f"| {kind} | {_cell(row)} | {heads} |")
    return lines


def _lists(misjudged: dict[str, list[str]]) -> list[str]:
    """Every run that was judged wrong, by recipe and fault; runs that were not found had no remedy to try."""
    lines = []
    for title, key in (
        ("False alarms", "false_alarms"),
        ("Not found", "missed"),
        ("Found, but of other layers", "wrong_layers"),
        ("Not cured by the first two remedies", "not_cured"),
    ):
        runs = (run for run in misjudged[key] if not run.endswith(", "))
        counts = Counter(re.sub(", seed [0-9]+", "", run) for run in runs)
        lines += ["", f"{title}:" if counts else f"{title}: none.", ""]
        lines += [f"- {run}{f' ({n} seeds)' if n > 1 else ''}" for run, n in counts.items()]
    return lines


def _cell(value: dict[str, Any]) -> str:
    return f"{value['rate']:.1%} ({value['count']} of {value['of']})"


def _interval(value: dict[str, Any]) -> str:
    return f"{value['interval_95'][0]:.1%} – {value['interval_95'][1]:.1%}"
