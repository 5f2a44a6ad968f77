"""Gather the records of a complete plan and render reports/."""

from pathlib import Path

import _checkout  # noqa: F401

from bench.cli import reporting_errors
from bench.records import gather_outputs
from bench.report import render


def main() -> None:
    """Render what is whole; refuse what is not."""
    render(gather_outputs(Path()), Path("reports"))


if __name__ == "__main__":
    with reporting_errors():
        main()
