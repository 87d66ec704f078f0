"""The command line: `main` and the subcommands `info`, `run`, `watch` and `report`."""

from gradkern.cli.main import main

__all__ = ["main"]
