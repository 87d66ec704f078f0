"""`Frame`: one frame of the live view, for rich. Text from the run is never parsed as markup."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from gradkern._util.text import clip_middle, fit, number, visible
from gradkern.watch.chart import bars, fold
from gradkern.watch.snapshot import Ranked, Snapshot

_ALARM, _SOFT, _WARN = "bold red", "dim", "yellow"


class Frame:
    """A snapshot, laid out for the console's size at the time it is drawn."""

    def __init__(self, snapshot: Snapshot, interactive: bool = False) -> None:
        self.snapshot = snapshot
        self.interactive = interactive

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        height = options.size.height if self.interactive else 28
        frame = Group(*_lines(self.snapshot, width, height, self.interactive, options.ascii_only))
        for segment in console.render(frame, options):
            if options.ascii_only and not segment.control:
                segment = Segment(_ascii(segment.text), segment.style)
            yield segment


def _ascii(text: str) -> str:
    """Text for ASCII terminals; other characters become escapes."""
    return text.replace("×", "x").replace("…", "~").encode("ascii", "backslashreplace").decode("ascii")


def _lines(
    snap: Snapshot, width: int, height: int, interactive: bool, ascii_only: bool
) -> list[RenderableType]:
    head: list[RenderableType] = [_title(snap, width), *_numbers(snap, width)]
    foot = [_footer(snap, interactive)]
    for said in (_headline(snap, width, 2 if height >= 20 else 1), _happened(snap), _parts(snap)):
        if height - len(head) - len(foot) - len(said) >= 5:
            head += said
    if not snap.records:
        return [*head, Text(snap.note, style=_SOFT), *foot]
    left = height - len(head) - len(foot)
    chart_rows = max(1, min(6, left - 8))
    chart = _chart(snap, width, chart_rows, ascii_only) if left > 3 else []
    tables = _tables(snap, width, left - len(chart))
    return [*head, *chart, *tables, *foot]


def _title(snap: Snapshot, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("gradkern ", style="bold")
    line.append(clip_middle(visible(snap.title), max(10, width - 40)), style="bold cyan")
    line.append(f"  {snap.status}", style=_WARN if snap.stalled else _SOFT)
    return line


def _numbers(snap: Snapshot, width: int) -> list[Text]:
    if not snap.records:
        return []
    first = [(f"step {snap.step:,}", ""), (_norm(snap), _alarm(snap.total_norm))]
    if snap.max_norm is not None:
        first.append((f"threshold {number(snap.max_norm)}", ""))
    if snap.clip_rate is not None:
        first.append((f"clipped {snap.clip_rate:.1%} (lately {snap.clip_rate_lately or 0:.1%})", ""))
    if snap.loss is not None:
        first.append((f"loss {number(snap.loss)}", _alarm(snap.loss)))
    if snap.lr is not None:
        first.append((f"lr {number(snap.lr, 3)}", ""))
    if snap.skipped:
        first.append((f"skipped {snap.skipped:,}", _WARN))
    lines = _joined(first, width)
    if snap.first_nonfinite is not None:
        lines += _first_nonfinite(snap.nonfinite_steps, *snap.first_nonfinite, width)
    return lines


def _norm(snap: Snapshot) -> str:
    return f"norm {number(snap.total_norm)}" + (f" {snap.phase}" if snap.phase else "")


def _first_nonfinite(steps: int, step: int, name: str, more: int, width: int) -> list[Text]:
    others = f" and {more} more" if more else ""
    text = f"inf or NaN in {steps:,} step{'s' * (steps != 1)}, first at step {step:,}:"
    room = width - len(others) - 1
    apart = len(text) + len(visible(name)) > room  # the name gets a line of its own
    shown = clip_middle(visible(name), max(8, room if apart else width)) + others
    lines = [text, shown] if apart else [f"{text} {shown}"]
    return [Text(line, style=_ALARM, no_wrap=True, overflow="ellipsis") for line in lines]


def _headline(snap: Snapshot, width: int, most: int) -> list[Text]:
    """The headline of the diagnosis and its first remedy, at most `most` lines each."""
    finding = snap.headline
    if finding is None:
        return []
    style = _ALARM if finding.severity == "severe" else _WARN
    said = [f"{finding.title}: {visible(finding.why)}"]
    if finding.remedies:
        said.append(f"Do: {visible(finding.remedies[0].because)}")
    lines = [line for text in said for line in textwrap.wrap(text, width, max_lines=most, placeholder=" …")]
    return [Text(line, style=style, no_wrap=True, overflow="ellipsis") for line in lines]


def _happened(snap: Snapshot) -> list[Text]:
    """How many events there were of each kind, and the last one."""
    if snap.latest is None:
        return []
    counts = ", ".join(f"{count:,} {visible(kind, 40)}" for kind, count in snap.happened.items())
    line = Text(f"Events: {counts}", no_wrap=True, overflow="ellipsis")
    style = {"severe": _ALARM, "warning": _WARN}.get(snap.latest.severity, "")
    return [line.append(f"  |  step {snap.latest.step:,}: {snap.latest.line}", style=style)]


def _parts(snap: Snapshot) -> list[Text]:
    """The total norm of each group or model, on one line."""
    if not snap.parts:
        return []
    line = Text("Norm of", no_wrap=True, overflow="ellipsis")
    for index, part in enumerate(snap.parts):
        line.append("  |  " if index else " ", style=_SOFT)
        line.append(f"{visible(part.name, 40)} {part.text}", style=_ALARM if part.alarm else "")
    return [line]


def _alarm(value: float | None) -> str:
    return _ALARM if value is not None and not math.isfinite(value) else ""


def _joined(parts: Sequence[tuple[str, str]], width: int) -> list[Text]:
    """Join parts into lines, breaking lines only between parts."""
    lines = [Text(no_wrap=True, overflow="ellipsis")]
    for text, style in parts:
        if lines[-1] and len(lines[-1]) + 5 + len(text) > width:
            lines.append(Text(no_wrap=True, overflow="ellipsis"))
        if lines[-1]:
            lines[-1].append("  |  ", style=_SOFT)
        lines[-1].append(text, style=style)
    return lines


def _chart(snap: Snapshot, width: int, rows: int, ascii_only: bool) -> list[Text]:
    """The recent total norm on a log scale, with its range beside it and clipped steps below it."""
    room = max(10, width - 11)
    values = fold(snap.norms, room)
    finite = [v for v in values if math.isfinite(v)]
    lines = []
    drawn = bars(list(values), rows, ascii_only)
    for index, row in enumerate(drawn):
        edge = ""
        if finite and index == 0:
            edge = number(max(finite), 3)
        elif finite and index == len(drawn) - 1:
            edge = number(min(finite), 3)
        line = Text(f"{edge:>9} ", style=_SOFT, no_wrap=True)
        for glyph in row:
            line.append(glyph, style=_ALARM if glyph in "×x" else "cyan")
        lines.append(line)
    clipped = fold(snap.clipped, room)
    marks = "".join("^" if c > 0 else " " for c in clipped)
    if marks.strip():
        lines.append(Text(f"{'clipped':>9} ", style=_SOFT, no_wrap=True).append(marks, style=_WARN))
    caption = f"{'':10}total norm, last {len(snap.norms):,} of {snap.records:,} records (log scale)"
    lines.append(Text(caption, style=_SOFT, no_wrap=True, overflow="ellipsis"))
    return lines


def _tables(snap: Snapshot, width: int, height: int) -> list[RenderableType]:
    """Four short tables, in two columns if the terminal is wide enough."""
    blocks = [
        ("largest rms", snap.largest),
        ("smallest rms", snap.smallest),
        ("risen most", snap.risen),
        ("fallen most", snap.fallen),
    ]
    beside = 2 if width >= 76 else 1
    each = height // (4 // beside) - 1
    if each < 1:
        blocks, each = blocks[:beside], height - 1
    if each < 1:
        return []
    shown = [row for _, rows in blocks for row in rows[:each]]
    room = max(6, width // beside - 3 - max((len(row.text) for row in shown), default=0))
    names = list(dict.fromkeys(row.name for row in shown))
    labels = dict(zip(names, fit([visible(name) for name in names], room)))
    made: list[RenderableType] = []
    for at in range(0, len(blocks), beside):
        grid = Table.grid(padding=(0, 2), expand=True)
        cells = [_table(title, rows[:each], labels, room) for title, rows in blocks[at : at + beside]]
        for _ in cells:
            grid.add_column(ratio=1)
        grid.add_row(*cells)
        made.append(grid)
    return made


def _table(title: str, rows: Sequence[Ranked], labels: Mapping[str, str], room: int) -> Text:
    block = Text(title, style="bold", no_wrap=True)
    for row in rows:
        block.append(f"\n{labels[row.name]:<{room}} ", style="not bold")
        block.append(row.text, style=_ALARM if row.alarm else "not bold")
    if not rows:
        block.append("\nnone", style="not bold dim")
    return block


def _footer(snap: Snapshot, interactive: bool) -> Text:
    parts = [snap.throughput] if snap.throughput else []
    if interactive:
        parts.append("q quits")
    return Text("  ".join(parts), style=_SOFT, no_wrap=True, overflow="ellipsis")
