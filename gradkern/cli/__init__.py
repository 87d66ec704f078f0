"""The command line."""

from gradkern.cli.main import main

__all__ = ["main"]
