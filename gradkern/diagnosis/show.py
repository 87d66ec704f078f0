"""Findings in a terminal: with rich, and as plain text without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradkern._util.text import visible
from gradkern.diagnosis.finding import MOST_REMEDIES, Finding

if TYPE_CHECKING:
    from rich.console import Console

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
        lines += [*_block(finding, _also(findings)), ""]
    return "\n".join(lines).rstrip()


def _also(findings: Sequence[Finding]) -> int:
    """How many remedies of the other findings are shown: none if a severe finding comes first, which may be
    their cause."""
    return 0 if findings[0].severity == "severe" else 1


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


def print_rich(console: Console, findings: Sequence[Finding]) -> None:
    """Print the headline with its remedies, then the other findings, in color.

    Code is not framed or broken, so that it can be copied.
    """
    from rich.text import Text

    alarms = [finding for finding in findings if finding.is_alarm]
    if alarms:
        _headline(console, alarms[0])
    else:
        console.print(Text(f"✓ {NO_ALARM if findings else HEALTHY}", style="bold green"))
    rest = [finding for finding in findings if finding not in alarms[:1]]
    if rest:
        console.print(Text("\nAlso seen", style="bold"))
    for finding in rest:
        console.print(_line(finding, _also(findings)))


def _headline(console: Console, finding: Finding) -> None:
    from rich.console import Group
    from rich.panel import Panel
    from rich.syntax import Syntax
    from rich.text import Text

    color = COLORS[finding.severity]
    parts = [
        Text(visible(finding.why, 2000)),
        *(Text(x, style="dim") for x in (finding.where, finding.numbers)),
    ]
    heading = Text(f" {MARKS[finding.severity]} {finding.title} · {finding.severity} ", style=color)
    console.print(Panel(Group(*parts), title=heading, title_align="left", border_style=color, padding=(1, 2)))
    for rank, remedy in enumerate(finding.remedies[:MOST_REMEDIES], 1):
        console.print(Text(f"\n{rank}. {visible(remedy.because, 2000)}", style="bold" if rank == 1 else ""))
        if remedy.code:
            code = Syntax("", "python", background_color="default").highlight(remedy.code)
            code.rstrip()
            console.print(Text("\n"), code, sep="", soft_wrap=True)


def _line(finding: Finding, remedies: int) -> Any:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    head = Text(f"{MARKS[finding.severity]} {finding.title}", style=COLORS[finding.severity])
    head.append(f"  {finding.where}", style="dim")
    parts = [Text(visible(finding.why, 2000))]
    parts += [Text(f"→ {visible(remedy.because, 2000)}") for remedy in finding.remedies[:remedies]]
    return Group(Padding(head, (0, 0, 0, 2)), *(Padding(part, (0, 0, 0, 4)) for part in parts))
