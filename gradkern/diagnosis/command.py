"""`gradkern diagnose RUN`: print the findings of a run. The exit status tells whether one is severe."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradkern._util.text import visible
from gradkern.diagnosis.diagnose import diagnose
from gradkern.diagnosis.finding import Finding
from gradkern.diagnosis.show import as_text, print_rich
from gradkern.history.facade import History
from gradkern.history.format import DATABASE, RUN_HINT, HistoryError, runs_in_words

if TYPE_CHECKING:
    from argparse import _SubParsersAction

#: Version of the output of `--json`. It is raised if the meaning of a name changes.
JSON_VERSION = 1
FINE, SEVERE, UNREADABLE = 0, 1, 2
#: Steps that most rules need.
FEW = 10
_STATUS = "The exit status is 1 if a finding is severe, 2 if the run cannot be read, and 0 otherwise."


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to gradkern's parser."""
    parser = commands.add_parser(
        "diagnose",
        help="find faults of a run, with evidence and remedies",
        description=f"Finds faults of a run, with evidence and remedies. {_STATUS}",
    )
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, help="folder of the run: the run_dir given to GradMonitor"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        with History.open(arguments.run_dir) as history:
            findings = diagnose(history)
            document = as_json(history, findings)
            heading = _heading(history)
    except (HistoryError, OSError) as error:
        print(f"gradkern diagnose: {visible(str(error), 2000)}", file=sys.stderr)
        if not (arguments.run_dir / DATABASE).exists():
            print(visible(runs_in_words(arguments.run_dir), 2000) or RUN_HINT, file=sys.stderr)
        return UNREADABLE
    if arguments.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    elif not document["steps"]:
        print(f"{heading}: there is nothing to judge")
    else:
        _show(heading, findings)
    return SEVERE if any(finding.severity == "severe" for finding in findings) else FINE


def as_json(history: History, findings: Sequence[Finding]) -> dict[str, Any]:
    """The output of `--json`."""
    return {
        "version": JSON_VERSION,
        "run": str(history.path),
        "steps": len(history),
        "parameters": len(history.names),
        "healthy": not any(finding.is_alarm for finding in findings),
        "findings": [finding.to_json() for finding in findings],
    }


def _heading(history: History) -> str:
    steps = f"steps {history.steps[0]}–{history.steps[-1]}" if len(history) else "no steps yet"
    few = " (most rules need at least 10 steps)" if 0 < len(history) < FEW else ""
    return f"{visible(str(history.path.parent), 200)}: {steps}, {len(history.names)} parameters{few}"


def _show(heading: str, findings: Sequence[Finding]) -> None:
    try:
        from rich.console import Console
    except ImportError:
        console = None
    else:
        console = Console()
    if console is None or not console.is_terminal:
        print(heading, as_text(findings), sep="\n\n")
        return
    console.print(heading, style="dim", highlight=False, markup=False, soft_wrap=True)
    print_rich(console, findings)
