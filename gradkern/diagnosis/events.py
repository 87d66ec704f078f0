"""`Notice`: an event of a run (a finding, a skipped step, a spike, a rollback, …) as text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradkern._util.text import number, visible
from gradkern.diagnosis.finding import Finding

__all__ = ["Notice", "notice_of"]

#: Characters of a notice at most.
_LONGEST = 600
_REASONS = {
    "nonfinite": "inf or NaN in a gradient",
    "outlier": "its norm is an outlier",
    "policy": "the policy decided to skip it",
    "scaler": "the loss scale was too large",
}
#: Kinds for which loggers that can send alerts send one.
_ALERTS = ("finding", "rollback", "stop")


@dataclass(frozen=True)
class Notice:
    """The text of an event."""

    step: int
    kind: str
    severity: str
    """One of `SEVERITIES`."""
    title: str
    """A few words: "vanishing gradient", "step skipped"."""
    text: str
    """One or two sentences; empty if the title is enough."""

    @property
    def is_alert(self) -> bool:
        """Whether to send an alert: for a warning or severe finding, a rollback or a stop."""
        return self.kind in _ALERTS and self.severity != "info"

    @property
    def line(self) -> str:
        """Title and text on one line, safe for a terminal."""
        return visible(f"{self.title}: {self.text}" if self.text else self.title, _LONGEST)


def notice_of(step: int, kind: str, data: Mapping[str, Any]) -> Notice:
    """Make the text of an event.

    Args:
        step, kind, data: the fields of an `Event`. Unexpected data, as from a damaged file, is shown as JSON.
    """
    make = _KINDS.get(kind, _other)
    try:
        severity, title, text = make(kind, data)
    except (AttributeError, KeyError, TypeError, ValueError):
        severity, title, text = _other(kind, data)
    return Notice(step, kind, severity, title, f"{text}{_repeated(data)}"[:_LONGEST])


_Said = tuple[str, str, str]


def _repeated(data: Mapping[str, Any]) -> str:
    """A note if an event stands for several."""
    if not {"count", "last_step"} <= data.keys():
        return ""
    return f" ({data['count']} times up to step {data['last_step']})"


def _finding(kind: str, data: Mapping[str, Any]) -> _Said:
    finding = Finding.from_json(data)
    do = f" {finding.remedies[0].because}" if finding.remedies else ""
    return finding.severity, finding.title, f"{finding.why}{do}"


def _skip(kind: str, data: Mapping[str, Any]) -> _Said:
    reason = _REASONS.get(str(data.get("reason")), str(data.get("reason") or ""))
    return "warning", "step skipped", f"{_of_group(data)}{reason}{_in_parameters(data)}"


def _spike(kind: str, data: Mapping[str, Any]) -> _Said:
    compared = f"usually {_number(data['usual'])}" if "usual" in data else f"limit {_number(data['limit'])}"
    said = f"{_of_group(data)}norm {_number(data['norm'])}, {compared}{_in_parameters(data)}"
    return "warning", "spike", said


def _in_parameters(data: Mapping[str, Any]) -> str:
    names = [str(name) for name in data.get("parameters") or ()]
    return f" in {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def _threshold(kind: str, data: Mapping[str, Any]) -> _Said:
    setting = f"{data['setting']} " if data.get("setting") else ""
    change = f"{setting}{_number(data['before'])} to {_number(data['after'])}"
    return "info", "threshold changed", f"{_of_group(data)}{change}"


def _rollback(kind: str, data: Mapping[str, Any]) -> _Said:
    reason = _REASONS.get(str(data.get("reason")), str(data.get("reason") or ""))
    count, budget = data.get("count"), data.get("budget")
    spent = f" ({_number(count)} of {_number(budget)})" if count is not None and budget is not None else ""
    return "warning", "rolled back", f"{reason}{spent}"


def _stop(kind: str, data: Mapping[str, Any]) -> _Said:
    reason = _REASONS.get(str(data.get("reason")), str(data.get("reason") or ""))
    return "severe", "training stopped", reason


def _warning(kind: str, data: Mapping[str, Any]) -> _Said:
    return "warning", "warning", str(data["message"])


def _other(kind: str, data: Mapping[str, Any]) -> _Said:
    return "info", kind, json.dumps(data, default=str) if data else ""


_KINDS: dict[str, Callable[[str, Mapping[str, Any]], _Said]] = {
    "finding": _finding,
    "skip": _skip,
    "spike": _spike,
    "threshold": _threshold,
    "rollback": _rollback,
    "stop": _stop,
    "warning": _warning,
}


def _of_group(data: Mapping[str, Any]) -> str:
    names = [str(data[key]) for key in ("part", "group") if data.get(key)]
    return f"{', '.join(names)}: " if names else ""


def _number(value: Any) -> str:
    """A number of an event; JSON has null for inf and NaN."""
    return "inf or NaN" if value is None or not math.isfinite(value) else number(value)
