"""The command line."""

from tahoe.cli.main import main

__all__ = ["main"]
