"""`Finding` and `Remedy`: the results of a diagnosis, and their JSON form."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradkern._util.text import visible
from gradkern.diagnosis.evidence_words import in_words

__all__ = ["KINDS", "SEVERITIES", "Finding", "Remedy"]

#: All kinds of findings in order of precedence: causes come before their consequences. The first finding of a
#: run is its headline.
KINDS = (
    "nonfinite_gradient",
    "low_precision_underflow",
    "no_gradient",
    "dead_units",
    "saturation",
    "vanishing_gradient",
    "exploding_gradient",
    "poor_initialization",
    "update_too_large",
    "weight_growth",
    "weight_collapse",
    "update_too_small",
    "always_clipping",
    "gradient_spike",
    "loss_oscillating",
    "loss_not_decreasing",
    "never_clipping",
)
#: In ascending order. "info" is never an alarm.
SEVERITIES = ("info", "warning", "severe")
#: How many remedies and names of a finding are shown.
MOST_REMEDIES, MOST_NAMES = 3, 4
_COLORS = {"severe": "#c0392b", "warning": "#b9770e", "info": "#707b7c"}


@dataclass(frozen=True)
class Remedy:
    """A remedy for a finding."""

    action: str
    """A short name of the remedy, the same for all models: "relu", "residual", "lower_lr"."""
    because: str
    """What to do and why it helps in this run: one or two sentences."""
    code: str = ""
    """Python code to paste; empty if there is none."""

    def as_html(self) -> str:
        """The reason and the code as escaped HTML."""
        code = f"<pre style='margin:4px 0'>{html.escape(self.code)}</pre>" if self.code else ""
        return html.escape(visible(self.because, 2000)) + code

    def to_json(self) -> dict[str, str]:
        """The fields as a dict for `json.dumps`."""
        return {"action": self.action, "because": self.because, "code": self.code}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Remedy:
        """The inverse of `to_json`."""
        return cls(str(value["action"]), str(value["because"]), str(value.get("code", "")))


@dataclass(frozen=True)
class Finding:
    """A fault of a run: its kind and severity, the parameters and steps, the evidence, and remedies.

    Raises:
        ValueError: `kind` or `severity` is not one of `KINDS` or `SEVERITIES`.
    """

    kind: str
    """One of `KINDS`."""
    severity: str
    """One of `SEVERITIES`."""
    layers: tuple[str, ...] = ()
    """Names of the parameters at fault; empty if it is the whole model."""
    first_step: int = 0
    """The first step that shows it."""
    last_step: int = 0
    """The last step that shows it."""
    evidence: dict[str, float] = field(default_factory=dict)
    """The numbers that the finding is based on, by name."""
    why: str = ""
    """What these numbers mean: one to three sentences."""
    remedies: tuple[Remedy, ...] = ()
    """What to do, the most suitable remedy first."""

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("severity", self.severity, SEVERITIES)):
            if value not in known:
                raise ValueError(f"[Finding] {name}: expected one of {', '.join(known)}, got {value!r}")

    @property
    def is_alarm(self) -> bool:
        """Whether something should be done: the severity is "warning" or "severe"."""
        return self.severity != "info"

    @property
    def title(self) -> str:
        """The kind in words: "vanishing gradient"."""
        return self.kind.replace("_", " ")

    @property
    def where(self) -> str:
        """Steps and parameters, in a few words."""
        steps = f"step {self.first_step}"
        if self.last_step != self.first_step:
            steps = f"steps {self.first_step}–{self.last_step}"
        if not self.layers:
            return f"{steps}, the whole model"
        more = len(self.layers) - MOST_NAMES
        names = ", ".join(visible(name, 80) for name in self.layers[:MOST_NAMES])
        return f"{steps}, in {names}" + (f" and {more} more" if more > 0 else "")

    @property
    def numbers(self) -> str:
        """The evidence on one line, in words."""
        return in_words(self.evidence)

    def _repr_html_(self) -> str:
        """The finding in a notebook, everything escaped."""
        color = _COLORS[self.severity]
        remedies = "".join(f"<li>{r.as_html()}</li>" for r in self.remedies[:MOST_REMEDIES])
        return (
            f"<div style='border-left:4px solid {color};padding:4px 12px;margin:6px 0'>"
            f"<b style='color:{color}'>{self.title} · {self.severity}</b>"
            f"<div>{html.escape(visible(self.why, 2000))}</div>"
            f"<small>{html.escape(self.where)}<br>{html.escape(visible(self.numbers, 2000))}</small>"
            f"<ol style='margin:4px 0'>{remedies}</ol></div>"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; numbers that are not finite become strings ("inf", "nan")."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "layers": list(self.layers),
            "first_step": self.first_step,
            "last_step": self.last_step,
            "evidence": {k: v if math.isfinite(v) else str(v) for k, v in self.evidence.items()},
            "why": self.why,
            "remedies": [remedy.to_json() for remedy in self.remedies],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """The inverse of `to_json`."""
        return cls(
            kind=str(value["kind"]),
            severity=str(value["severity"]),
            layers=tuple(str(name) for name in value["layers"]),
            first_step=int(value["first_step"]),
            last_step=int(value["last_step"]),
            evidence={str(k): float(v) for k, v in value["evidence"].items()},
            why=str(value["why"]),
            remedies=tuple(Remedy.from_json(remedy) for remedy in value["remedies"]),
        )
