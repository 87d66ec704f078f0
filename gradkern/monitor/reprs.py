"""A recorded run in a few lines of HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradkern._text import html_table, number

if TYPE_CHECKING:
    from gradkern.monitor.history import History


def history_html(history: History) -> str:
    """A small table; reads the plain numbers of each step and at most one row of the parameters."""
    rows = [("folder", str(history.path.parent)), ("parameters", f"{len(history.names):,}")]
    if len(history):
        rows += _recorded(history)
    else:
        rows.append(("steps", "nothing recorded yet"))
    return html_table("History", ("", "value"), rows)


def _recorded(history: History) -> list[tuple[str, str]]:
    losses, clips = history.loss[history.has_loss], history.clipped[history.has_coef]
    rows = [
        ("steps", f"{len(history):,} ({history.steps[0]:,} to {history.steps[-1]:,})"),
        (f"total norm ({str(history.phase[-1]).replace('_', ' ')}), last", number(history.total_norm[-1])),
        ("steps clipped", f"{clips.mean():.1%}" if len(clips) else "-"),
        ("loss, last", number(losses[-1]) if len(losses) else "-"),
        ("steps skipped", f"{np.count_nonzero(history.skipped):,}"),
    ]
    bad = np.flatnonzero(~np.isfinite(history.total_norm))
    rows.append(("steps with inf or NaN", f"{len(bad):,}"))
    if len(bad):
        first = int(bad[0])
        names = [history.names[i] for i in np.flatnonzero(history.window(first, first + 1).nonfinite[0])]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        rows.append((f"first, at step {history.steps[first]:,}", (names or ["only the total"])[0] + more))
    return rows
