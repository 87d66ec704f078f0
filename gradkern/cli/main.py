"""The command line: `gradkern COMMAND`, also `python -m gradkern COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gradkern.bench.command import add_command as add_bench
from gradkern.cli.info import add_command as add_info
from gradkern.cli.run import add_command as add_run
from gradkern.cli.viewing import add_commands as add_viewing
from gradkern.demo.command import add_command as add_demo
from gradkern.diagnosis.command import add_command as add_diagnose
from gradkern.version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradkern", description="Gradient norms, clipping and monitoring for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"gradkern {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    add_info(commands)
    add_demo(commands)
    add_viewing(commands)
    add_run(commands)
    add_diagnose(commands)
    add_bench(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 if it succeeded, 130 if it was interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        after_echo = "\n" if sys.stderr.isatty() else ""  # the terminal has written ^C
        print(f"{after_echo}gradkern {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has ended, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
