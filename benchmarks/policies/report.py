"""Results over several seeds: a table, and a file in benchmarks/results."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import machine

Runs = Mapping[str, Sequence[float]]
"""The last held-out loss of each seed, by contender; NaN where training broke."""


def summary(losses: Sequence[float]) -> dict[str, Any]:
    finite = [x for x in losses if math.isfinite(x)]
    return {
        "losses": [x if math.isfinite(x) else None for x in losses],
        "broken": len(losses) - len(finite),
        "median": statistics.median(finite) if finite else None,
    }


def report(name: str, settings: Mapping[str, Any], runs: Runs) -> None:
    """Print the table and write benchmarks/results/NAME.json."""
    rows = {contender: summary(losses) for contender, losses in runs.items()}
    print("| | held-out loss: median (least to greatest) | broken |\n|---|---|---|")
    for contender, row in rows.items():
        finite = [x for x in row["losses"] if x is not None]
        told = f"{row['median']:.2f} ({min(finite):.2f} to {max(finite):.2f})" if finite else "–"
        print(f"| {contender} | {told} | {row['broken']} of {len(row['losses'])} |")
    machine.save(name, {"machine": machine.describe(), "settings": dict(settings), "runs": rows})
