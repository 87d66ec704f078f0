"""`Finding` and `Remedy`: what a diagnosis says, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "SEVERITIES", "Finding", "Remedy"]

#: Every kind of finding, in order of precedence: where one sickness brings about another, the cause stands
#: first. The first finding of a run is its headline.
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
#: From the least to the worst. "info" is worth knowing and never an alarm.
SEVERITIES = ("info", "warning", "severe")


@dataclass(frozen=True)
class Remedy:
    """Something to do about a finding."""

    action: str
    """A short name of the remedy, the same for all models: "relu", "residual", "lower_lr"."""
    because: str
    """One sentence: what to do and why it helps here."""
    code: str = ""
    """Python to paste; empty where there is none."""

    def to_json(self) -> dict[str, str]:
        return {"action": self.action, "because": self.because, "code": self.code}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Remedy:
        """The inverse of `to_json`."""
        return cls(str(value["action"]), str(value["because"]), str(value.get("code", "")))


@dataclass(frozen=True)
class Finding:
    """One sickness of a run: what, how bad, where, since when, how one knows, and what to do.

    Raises:
        ValueError: `kind` or `severity` is not one of `KINDS` or `SEVERITIES`.
    """

    kind: str
    """One of `KINDS`."""
    severity: str
    """One of `SEVERITIES`."""
    layers: tuple[str, ...] = ()
    """Names of the parameters at fault and only those; empty where it is the whole model."""
    first_step: int = 0
    """The first step that shows it."""
    last_step: int = 0
    """The last step that shows it."""
    evidence: dict[str, float] = field(default_factory=dict)
    """The numbers it rests on, by name."""
    why: str = ""
    """One sentence: what these numbers mean."""
    remedies: tuple[Remedy, ...] = ()
    """What to do, the most fitting first."""

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("severity", self.severity, SEVERITIES)):
            if value not in known:
                raise ValueError(f"[Finding] {name}: expected one of {', '.join(known)}, got {value!r}")

    @property
    def is_alarm(self) -> bool:
        """Whether something should be done: "warning" or "severe"."""
        return self.severity != "info"

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
