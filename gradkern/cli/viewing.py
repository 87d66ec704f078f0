"""The subcommands `watch` and `report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from gradkern.report.data import ReportData

_FAILED = 2
_RUN_HELP = "folder of the run: the run_dir given to GradMonitor"
_WAITS = " In a terminal, and without --once, watch waits for it."


def add_commands(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to gradkern's parser."""
    watch = commands.add_parser(
        "watch",
        help="show a run live in the terminal",
        description="Shows a run while it is recorded or afterwards. Waits if it has not begun.",
    )
    watch.add_argument("run_dir", metavar="RUN", type=Path, help=_RUN_HELP)
    watch.add_argument("--once", action="store_true", help="print one frame and exit")
    watch.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two updates"
    )
    watch.set_defaults(run=_watch)

    report = commands.add_parser("report", help="write one self-contained HTML file about a run")
    report.add_argument("run_dir", metavar="RUN", type=Path, help=_RUN_HELP)
    report.add_argument(
        "-o", "--output", type=_text, metavar="FILE", help="file or folder to write to (default: RUN)"
    )
    report.add_argument(
        "--png", type=_path, metavar="DIR", help="also write every figure to this folder, as a PNG file"
    )
    report.set_defaults(run=_report)


def _text(text: str) -> str:
    if not text:  # probably an unset shell variable; Path("") would be the current folder
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.05 to 3600 seconds, got {text}")
    return value


def _watch(arguments: argparse.Namespace) -> int:
    try:
        from gradkern.history.format import HistoryError
        from gradkern.watch import show_once, watch

        if arguments.once or not sys.stdout.isatty():
            show_once(arguments.run_dir)
        else:
            watch(arguments.run_dir, interval=arguments.interval)
    except KeyboardInterrupt:
        return 0
    except (HistoryError, ImportError, OSError) as error:
        return _fail("watch", arguments.run_dir, error)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    try:
        from gradkern.history.format import HistoryError
        from gradkern.report.load import load

        run = load(arguments.run_dir)
    except (HistoryError, ImportError, OSError) as error:
        return _fail("report", arguments.run_dir, error)
    try:
        _write(run, arguments.output, arguments.png)
    except OSError as error:
        reason = f"cannot write {error.filename or 'its output'}: {error.strerror}"
        return _fail("report", arguments.run_dir, reason)
    except ImportError as error:
        return _fail("report", arguments.run_dir, error)
    return 0


def _write(run: ReportData, output: str | None, pictures: Path | None) -> None:
    from gradkern.report import write_report

    path = write_report(run, output)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    if pictures is not None:
        from gradkern.report import save_figures

        for file in save_figures(run, pictures):
            print(file)


def _fail(command: str, run_dir: Path, error: Exception | str) -> int:
    from gradkern._util.text import visible
    from gradkern.history import format

    print(f"gradkern {command}: {visible(str(error), 2000)}", file=sys.stderr)
    if not (run_dir / format.DATABASE).exists():
        hint = format.RUN_HINT + (_WAITS if command == "watch" else "")
        print(visible(format.runs_in_words(run_dir), 2000) or hint, file=sys.stderr)
    return _FAILED
