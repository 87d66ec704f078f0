"""Writes the measured tables into README.md from benchmarks/results/: readme_tables.py [--check]."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def cpu_table(record: dict) -> str:
    machine = record["machine"]
    what = f"{machine['cpu']}, {record['threads']} threads, torch {machine['torch']}"
    lines = [
        f"{what}, commit {machine['commit']}.",
        "",
        "| gradients | dtype | clips | gradkern | `measure` | torch | torch, foreach=False "
        "| torch / gradkern | gradkern / floor |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        s = row["seconds"]
        cells = [
            row["case"],
            row["dtype"],
            "yes" if row["clipping"] else "no",
            seconds(s["gradkern"]),
            seconds(s["measure"]),
            seconds(s["torch"]),
            seconds(s["torch_single"]),
            f"{s['torch'] / s['gradkern']:.1f}",
            f"{s['gradkern'] / s['floor']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"cpu": cpu_table}


def rendered(text: str) -> str:
    """`text` with everything between `<!-- table: NAME -->` and `<!-- end -->` replaced."""
    for name, render in TABLES.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        head, _, rest = text.partition(f"<!-- table: {name} -->")
        _, _, tail = rest.partition("<!-- end -->")
        table = render(json.loads(path.read_text(encoding="utf-8")))
        text = f"{head}<!-- table: {name} -->\n{table}\n<!-- end -->{tail}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if README.md is not up to date")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = rendered(old)
    if arguments.check:
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
