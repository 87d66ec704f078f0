"""`GradStats` as a table: plain text and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from gradkern._util.names import common_prefix
from gradkern._util.text import fit, html_table, visible

_HEAD = ("name", "numel", "norm", "rms", "max_abs", "nonfinite")

#: A longer table loses its middle; this many rows are left at either end.
_ENDS = 30

#: Longer names lose their middle.
_NAME = 60

Row = tuple[str, ...]


class Statistics(Protocol):
    """What is read of a `GradStats`."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def numel(self) -> Sequence[int]: ...
    @property
    def has_grad(self) -> Sequence[bool]: ...
    @property
    def norm(self) -> Tensor: ...
    @property
    def rms(self) -> Tensor: ...
    @property
    def max_abs(self) -> Tensor: ...
    @property
    def nonfinite(self) -> Tensor: ...
    @property
    def total_norm(self) -> Tensor: ...
    @property
    def clip_coef(self) -> Tensor | None: ...
    def cpu(self) -> Statistics: ...


def headline(stats: Statistics) -> str:
    """The totals on one line. Synchronises, as everything here does."""
    clipped = "" if stats.clip_coef is None else f", clip_coef={float(stats.clip_coef):.4g}"
    bad = sum(stats.nonfinite.tolist())
    return (
        f"{len(stats.names)} rows, {sum(stats.has_grad)} with gradient, total_norm="
        f"{float(stats.total_norm):.6g}{clipped}, nonfinite={bad}"
    )


def as_text(stats: Statistics) -> str:
    """The headline and the table."""
    rows = [_HEAD, *_shown(stats)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [f"GradStats({headline(stats)})"]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, len(_HEAD))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_html(stats: Statistics) -> str:
    """The headline and the table, names escaped."""
    return html_table(f"GradStats({headline(stats)})", _HEAD, _shown(stats))


def _shown(stats: Statistics) -> list[Row]:
    rows = _rows(stats)
    return rows if len(rows) <= 2 * _ENDS else [*rows[:_ENDS], ("…",) * len(_HEAD), *rows[-_ENDS:]]


def _rows(stats: Statistics) -> list[Row]:
    host = stats.cpu()
    columns = zip(*(t.tolist() for t in (host.norm, host.rms, host.max_abs, host.nonfinite)))
    rows: list[Row] = []
    start = len(common_prefix(stats.names))
    names = fit([visible(name[start:]) for name in stats.names], _NAME)
    for name, numel, has_grad, (norm, rms, max_abs, bad) in zip(names, stats.numel, stats.has_grad, columns):
        numbers = (f"{norm:.4g}", f"{rms:.4g}", f"{max_abs:.4g}") if has_grad else ("-",) * 3
        rows.append((name, str(numel), *numbers, str(bad)))
    return rows
