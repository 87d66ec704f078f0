"""`history_html`: a recorded run as a short HTML table for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradkern._util.text import html_table, number
from gradkern.history.words import first_nonfinite_of, phase_in_words

if TYPE_CHECKING:
    from gradkern.history.recorded import Recorded


def history_html(history: Recorded) -> str:
    """A short table. Reads the plain numbers of each step and at most one row of the parameters."""
    rows = [("folder", str(history.path.parent)), ("parameters", f"{len(history.names):,}")]
    if len(history):
        rows += _recorded(history)
    else:
        rows.append(("steps", "nothing recorded yet"))
    return html_table("History", ("", "value"), rows)


def _recorded(history: Recorded) -> list[tuple[str, str]]:
    losses, clips = history.loss[history.has_loss], history.clipped[history.has_coef]
    rows = [
        ("steps", f"{len(history):,} ({history.steps[0]:,} to {history.steps[-1]:,})"),
        (f"total norm ({phase_in_words(history, slice(-1, None))}), last", number(history.total_norm[-1])),
        ("steps clipped", f"{clips.mean():.1%}" if len(clips) else "-"),
        ("loss, last", number(losses[-1]) if len(losses) else "-"),
        ("steps skipped", f"{np.count_nonzero(history.skipped):,}"),
    ]
    rows.append(("steps with inf or NaN", f"{np.count_nonzero(~np.isfinite(history.total_norm)):,}"))
    first_nonfinite = first_nonfinite_of(history)
    if first_nonfinite is not None:
        rows.append((f"first, at step {first_nonfinite.step:,}", str(first_nonfinite)))
    return rows
