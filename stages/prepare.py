"""Make one data set ready: `python stages/prepare.py NAME`. Writes data/manifests/NAME.json."""

import sys
from pathlib import Path

import _checkout  # noqa: F401

from bench import params
from bench.cli import reporting_errors
from bench.data.prepared import prepare
from bench.plan import PREPARE
from bench.store import Store


def main(name: str) -> None:
    """Prepare the data set of that name."""
    dataset = params.load(Path("params.yaml")).datasets[name]
    with Store().holds.held(PREPARE):
        prepare(name, dataset.reader, dataset.options, Path("data/manifests"))


if __name__ == "__main__":
    with reporting_errors():
        main(*sys.argv[1:])
