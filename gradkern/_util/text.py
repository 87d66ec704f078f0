"""Text for terminals and HTML: escaped names, numbers, tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence


def visible(text: str, limit: int = 400) -> str:
    """`text` on one line, with everything that could control a terminal escaped.

    Control, format (such as bidirectional overrides), separator and surrogate characters become ``\\x1b``,
    ``\\u202e``, …. A longer text is cut at `limit` characters.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def number(value: float | None, digits: int = 4) -> str:
    """A short number; a dash for None."""
    if value is None:
        return "-"
    return "NaN" if math.isnan(value) else f"{value:.{digits}g}"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent: 0.25 is "25 %"."""
    return f"{100 * share:.{digits}f} %"


def clip_middle(text: str, width: int) -> str:
    """At most `width` characters. A longer text loses its middle, because the end of a name says the most."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def fit(names: Sequence[str], width: int) -> list[str]:
    """Shorten different names to at most `width` characters each, so that they stay different.

    A name that is too long loses its middle. If that makes two names equal, the places where they differ are
    kept instead of the beginning. If there is no room for these, the row number is appended.
    """
    shown = [clip_middle(name, width) for name in names]
    kept: dict[int, list[int]] = {}
    for _ in range(3):
        for alike in _alike(shown):
            start = _first_difference([names[row] for row in alike])
            for row in alike:
                kept.setdefault(row, []).append(start)
                shown[row] = _around(names[row], kept[row], width)
    for alike in _alike(shown):
        for row in alike:
            mark = f"~{row + 1}"
            shown[row] = shown[row][: max(width - len(mark), 0)] + mark
    return shown


def _alike(shown: Sequence[str]) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(shown):
        rows.setdefault(text, []).append(row)
    return [members for members in rows.values() if len(members) > 1]


def _first_difference(names: Sequence[str]) -> int:
    """The start of the first component in which the names differ."""
    first, last = min(names), max(names)
    at = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first.rfind(".", 0, at) + 1


def _around(name: str, starts: Sequence[int], width: int) -> str:
    """The pieces of a name that begin at `starts`, and its end."""
    piece = (width - 1 - len(starts)) // (1 + len(starts))
    if piece < 3:
        return clip_middle(name, width)
    end = width - 1 - len(starts) - piece * len(starts)
    return "".join(f"…{name[start : start + piece]}" for start in sorted(starts)) + f"…{name[-end:]}"


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
