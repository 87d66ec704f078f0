"""`gradkern run`: run an unmodified training script with its clipping routed through gradkern."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_STARTUP = Path(__file__).resolve().parent.parent / "integrations" / "startup"


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to gradkern's parser."""
    run = commands.add_parser(
        "run",
        help="run a training script with its clipping routed through gradkern",
        description="COMMAND is a script (train.py …), -m MODULE …, or a program such as torchrun.",
        epilog="example: gradkern run --monitor runs/first torchrun --nproc-per-node 2 train.py --lr 0.1",
    )
    run.add_argument(
        "--monitor",
        metavar="RUN",
        type=Path,
        help="record the gradients of each clipped model to this folder",
    )
    run.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER)
    run.set_defaults(run=_run)


def command_of(words: list[str]) -> list[str]:
    """The program to execute: Python for scripts and modules."""
    if words[0] == "-m" or words[0].endswith(".py"):
        return [sys.executable, *words]
    return words


def environment_of(monitor: Path | None) -> dict[str, str]:
    """The environment that patches torch in the program and in the processes that it starts."""
    environment = {**os.environ, "GRADKERN_RUN": "1"}
    package = str(_STARTUP.parents[2])  # where the program finds gradkern if it is not installed
    paths = [str(_STARTUP), os.environ.get("PYTHONPATH", ""), package]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if monitor is not None:
        environment["GRADKERN_RUN_MONITOR"] = str(monitor.resolve())
    return environment


def _run(arguments: argparse.Namespace) -> int:
    words = arguments.command_line[1:] if arguments.command_line[:1] == ["--"] else arguments.command_line
    if not words:
        print("gradkern run: expected a script or a command, got nothing", file=sys.stderr)
        return 2
    command = command_of(words)
    program = shutil.which(command[0])
    if program is None:
        print(f"gradkern run: {command[0]}: command not found", file=sys.stderr)
        return 127
    sys.stdout.flush()
    os.execve(program, command, environment_of(arguments.monitor))
