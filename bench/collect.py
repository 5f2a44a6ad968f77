"""The stages' work: have a stage's cells computed, then lay them out as the stage's outputs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.external import import_needed
from bench.files import write_json
from bench.launch import ensure
from bench.plan import Cell, outputs, read_cells
from bench.settings import Params
from bench.store import Store


def collect(stage: str, name: str, params: Params, here: Path = Path()) -> None:
    """Compute what is missing of one stage and copy its cells to the stage's outputs.

    Outputs are `runs/<method>/<key>/` and `keys/<method>.json`, `records/<protocol>/<key>/`, or both kinds
    of a study under `studies/<name>/`.

    Args:
        stage: "pretrain", "evaluate" or "study".
        name: the method, the protocol or the study.
        params: how to run; what to run is in the plan.
        here: the folder of the pipeline.
    """
    cells = read_cells(here / "plan" / stage / f"{name}.json")
    store = Store()
    import_needed(params, cells, store)
    ensure(cells, _whole_plan(here / "plan"), params.cluster, store)
    folders = {kind: here / folder for kind, folder in outputs(stage, name).items()}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for cell in cells:
        store.copy_out(cell.key, folders[cell.stage] / cell.key)
    if stage == "pretrain":
        write_json(here / "keys" / f"{name}.json", [cell.key for cell in cells])


def _whole_plan(folder: Path) -> Iterator[Cell]:
    """Every cell of the plan; read only where one is asked for."""
    for stage in ("pretrain", "evaluate", "study"):
        for path in sorted((folder / stage).glob("*.json")):
            yield from read_cells(path)
