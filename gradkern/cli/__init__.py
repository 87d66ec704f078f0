"""The command line: `main` and its subcommands."""

from gradkern.cli.main import main

__all__ = ["main"]
