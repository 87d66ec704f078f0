"""The loop of the live view: read the run, draw a frame, wait for a key."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from gradkern.watch.snapshot import Snapshot, Watcher
from gradkern.watch.view import Frame

_TICK = 0.25  # seconds between checks of the keyboard and the size of the terminal


def show_once(run_dir: str | Path, console: Console | None = None) -> None:
    """Print one frame.

    Raises:
        HistoryError: there is no run yet, or the file is not a run. The message names the file.
    """
    with contextlib.closing(Watcher(run_dir)) as watcher:
        (console or Console()).print(Frame(watcher.take(wait=False)))


def watch(run_dir: str | Path, interval: float = 1.0, console: Console | None = None) -> None:
    """Show a run until q or Ctrl-C is pressed. The terminal is then restored and the last frame is printed.

    Args:
        run_dir: folder of the run. It may be empty or not exist yet, and the run may have ended.
        interval: seconds between two updates.
        console: where to draw. Default: the terminal.

    Raises:
        HistoryError: the file is not a run. The message names it.
    """
    console = console or Console()
    with contextlib.closing(Watcher(run_dir)) as watcher:
        snapshot = watcher.take()  # errors are reported before the screen changes
        with (
            contextlib.suppress(KeyboardInterrupt),
            _keys() as pressed,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            _follow(watcher, snapshot, interval, pressed, live)
        console.print(Frame(watcher.take()))


def _follow(
    watcher: Watcher, snapshot: Snapshot, interval: float, pressed: Callable[[float], str], live: Live
) -> None:
    """Draw until q. A frame is sent only if something changed."""
    due, drawn = time.monotonic() + interval, None
    while True:
        size = live.console.size
        if drawn != (id(snapshot), size):
            live.update(Frame(snapshot, interactive=True), refresh=True)
            drawn = (id(snapshot), size)
        if pressed(min(_TICK, interval)) in {"q", "Q"}:
            return
        if time.monotonic() >= due:
            taken, due = watcher.take(), time.monotonic() + interval
            if not taken.same_as(snapshot):
                snapshot = taken


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key for some seconds and returns it, or "" if there was none."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, AttributeError):  # there is no terminal
        yield _sleep
        return
    except termios.error:
        yield _sleep
        return

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        if not ready:
            return ""
        typed = os.read(descriptor, 64)
        if typed.startswith(b"\x1b"):  # an arrow or function key
            return ""
        return typed[:1].decode("latin-1") or "q"  # end of file: the terminal was closed

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""
