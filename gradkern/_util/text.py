"""Text for people: untrusted names made safe for terminals and HTML, numbers, tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence


def visible(text: str, limit: int = 400) -> str:
    """`text` on one line, with everything that could control a terminal escaped.

    Control, format (bidirectional overrides among them), separator and surrogate characters become
    ``\\x1b``, ``\\u202e``, …; longer texts are cut at `limit` characters.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def number(value: float | None, digits: int = 4) -> str:
    """A short number; a dash for None."""
    if value is None:
        return "-"
    return "NaN" if math.isnan(value) else f"{value:.{digits}g}"


def clip_end(text: str, width: int) -> str:
    """At most `width` characters. The end is kept, since it says more about a parameter."""
    if len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :] if width > 1 else text[:width]


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table with everything escaped; the first column is text, the others are numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        styles = ["text-align:left"] + ["text-align:right"] * (len(row) - 1)
        return "".join(
            f'<{tag} style="{style}">{html.escape(visible(text))}</{tag}>' for style, text in zip(styles, row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f'<caption style="text-align:left"><b>{html.escape(visible(caption))}</b></caption>'
    return f"<table>{title}<thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
