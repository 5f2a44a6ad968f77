"""Compute one study, all points and seeds: `python stages/study.py NAME`. Computes what the store lacks."""

import sys
from pathlib import Path

import _checkout  # noqa: F401

from bench import params
from bench.cli import reporting_errors
from bench.collect import collect


def main(name: str) -> None:
    """Compute and lay out the stage's cells."""
    collect("study", name, params.load(Path("params.yaml")))


if __name__ == "__main__":
    with reporting_errors():
        main(*sys.argv[1:])
