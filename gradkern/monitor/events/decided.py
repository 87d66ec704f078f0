"""What the policies of a step decided, model by model and group by group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradkern.history.rows import StepRow
from gradkern.params.stats import GradStats

#: Parameters that an event names at most.
MOST_NAMES = 8


class Decided(NamedTuple):
    """What a policy decided on all gradients of a model, or on a named group of them."""

    where: dict[str, str]
    """The part and the group, as an event names them."""
    settings: Mapping[str, Any]
    norm: float
    factor: float | None
    threshold: float | None

    @property
    def policy(self) -> str:
        return str(self.settings.get("class", ""))

    @property
    def exceeds(self) -> bool:
        return self.threshold is not None and self.norm > self.threshold


@dataclass(frozen=True)
class PartRow:
    """The row of a model's step, and the statistics that it was made of. Their tensors may be on a device."""

    part: str
    row: StepRow
    stats: GradStats

    @property
    def where(self) -> dict[str, str]:
        return {"part": self.part} if self.part else {}

    def decisions(self) -> Iterator[Decided]:
        """One for each named group, or one for all gradients."""
        row, policy = self.row, self.stats.policy or {}
        groups = policy.get("groups")
        if not isinstance(groups, Mapping):
            yield Decided(self.where, policy, row.total_norm, row.clip_coef, row.threshold)
            return
        for name, settings in groups.items():
            if name in row.groups:
                norm, *others = row.groups[name]
                factor, threshold = (None if math.isnan(number) else number for number in others)
                yield Decided({**self.where, "group": name}, settings, norm, factor, threshold)

    def rows_of(self, one: Decided) -> Sequence[int]:
        """The rows that it decided on."""
        names = self.stats.names
        if "group" not in one.where:
            return range(len(names))
        members = set(self.stats.groups[one.where["group"]].names)
        return [i for i, name in enumerate(names) if name in members]
