"""The live view of a run in a terminal: `gradkern watch RUN`. Needs rich."""

from __future__ import annotations

try:
    import rich  # noqa: F401
except ImportError as error:
    raise ImportError("the live view needs rich: pip install rich (extra: gradkern[monitor])") from error

from gradkern.watch.live import show_once, watch

__all__ = ["show_once", "watch"]
