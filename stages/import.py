"""Read one checkpoint of params.yaml: `python stages/import.py NAME`. Writes data/manifests/checkpoints/NAME.json."""

import sys
from pathlib import Path

import _checkout  # noqa: F401

from bench import params
from bench.cli import reporting_errors
from bench.external import import_checkpoint, requests
from bench.files import read_json
from bench.store import Store


def main(name: str) -> None:
    """Check the file key by key, note what it holds, and put the encoder in the store."""
    settings, folder = params.load(Path("params.yaml")), Path("data/manifests")
    manifest = read_json(folder / f"{settings.data.name}.json")
    import_checkpoint(requests(settings)[name], manifest, folder, Store())


if __name__ == "__main__":
    with reporting_errors():
        main(*sys.argv[1:])
