"""Write plan/: every stage's cells with their keys. Imports no torch."""

import shutil
from pathlib import Path

import _checkout  # noqa: F401

from bench import params, plan
from bench.cli import reporting_errors


def main() -> None:
    """Resolve params.yaml and the manifests."""
    settings = params.load(Path("params.yaml"))
    made = plan.make_plan(settings, plan.read_manifests(settings, Path("data/manifests")))
    for remark in made.remarks:
        print(remark)
    shutil.rmtree("plan", ignore_errors=True)
    made.write(Path("plan"), settings)
    plan.prune(made, Path())


if __name__ == "__main__":
    with reporting_errors():
        main()
