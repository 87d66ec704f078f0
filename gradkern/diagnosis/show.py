"""Findings in a terminal: with rich, and as plain text without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradkern._util.optional import need
from gradkern._util.text import visible
from gradkern.diagnosis.finding import MOST_REMEDIES, Finding

MARKS = {"severe": "✗", "warning": "!", "info": "·"}
COLORS = {"severe": "bold red", "warning": "bold yellow", "info": "dim"}
HEALTHY = "Healthy: no rule found anything wrong."
NO_ALARM = "Healthy: no alarm."


def as_text(findings: Sequence[Finding]) -> str:
    """The findings as plain text."""
    alarms = [finding for finding in findings if finding.is_alarm]
    lines = [*_block(alarms[0], MOST_REMEDIES), ""] if alarms else [NO_ALARM if findings else HEALTHY, ""]
    rest = [finding for finding in findings if finding not in alarms[:1]]
    if rest:
        lines += ["Also seen:", ""]
    for finding in rest:
        lines += [*_block(finding, 1), ""]
    return "\n".join(lines).rstrip()


def _block(finding: Finding, remedies: int) -> list[str]:
    lines = [
        f"{finding.severity.upper()}: {finding.title} ({finding.where})",
        f"  {visible(finding.why, 2000)}",
        f"  {finding.numbers}",
    ]
    for rank, remedy in enumerate(finding.remedies[:remedies], 1):
        mark = f"{rank}." if remedies > 1 else "→"
        lines.append(f"  {mark} {visible(remedy.because, 2000)}")
        lines += [f"       {line}" for line in remedy.code.splitlines()]
    return lines


def as_rich(findings: Sequence[Finding]) -> Any:
    """A renderable for rich: the headline with its remedies, then the other findings with their first remedy.

    Raises:
        ImportError: rich is not installed.
    """
    need("rich", "rich", "monitor", "gradkern diagnose")
    from rich.console import Group
    from rich.text import Text

    alarms = [finding for finding in findings if finding.is_alarm]
    parts: list[Any] = [_headline(alarms[0]) if alarms else _healthy(findings)]
    rest = [finding for finding in findings if finding not in alarms[:1]]
    if rest:
        parts.append(Text("\nAlso seen", style="bold"))
        parts += [_line(finding) for finding in rest]
    return Group(*parts)


def _healthy(findings: Sequence[Finding]) -> Any:
    from rich.text import Text

    return Text(f"✓ {NO_ALARM if findings else HEALTHY}", style="bold green")


def _headline(finding: Finding) -> Any:
    from rich.console import Group
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.syntax import Syntax
    from rich.text import Text

    color = COLORS[finding.severity]
    parts: list[Any] = [Text(visible(finding.why, 2000)), Text(finding.where, style="dim")]
    parts.append(Text(finding.numbers, style="dim"))
    for rank, remedy in enumerate(finding.remedies[:MOST_REMEDIES], 1):
        parts.append(Text(f"\n{rank}. {visible(remedy.because, 2000)}", style="bold" if rank == 1 else ""))
        if remedy.code:
            code = Syntax(remedy.code, "python", background_color="default", word_wrap=True)
            parts.append(Padding(code, (0, 0, 0, 3)))
    heading = Text(f" {MARKS[finding.severity]} {finding.title} · {finding.severity} ", style=color)
    return Panel(Group(*parts), title=heading, title_align="left", border_style=color, padding=(1, 2))


def _line(finding: Finding) -> Any:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    head = Text(f"{MARKS[finding.severity]} {finding.title}", style=COLORS[finding.severity])
    head.append(f"  {finding.where}", style="dim")
    parts = [Text(visible(finding.why, 2000))]
    parts += [Text(f"→ {visible(remedy.because, 2000)}") for remedy in finding.remedies[:1]]
    return Group(Padding(head, (0, 0, 0, 2)), *(Padding(part, (0, 0, 0, 4)) for part in parts))
