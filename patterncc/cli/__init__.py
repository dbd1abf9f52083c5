"""The command line, a thin skin over the public functions; heavy rooms load inside the commands."""

from patterncc.cli.main import main

__all__ = ["main"]
