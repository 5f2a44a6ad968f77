"""Telling people, and the logs, what happens."""

import sys


def say(text: str) -> None:
    """Print a line to standard error at once."""
    print(text, file=sys.stderr, flush=True)
