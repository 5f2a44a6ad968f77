"""The stages' work: have a stage's cells computed, then lay them out as the stage's outputs."""

import shutil
from pathlib import Path

from bench.files import write_json
from bench.launch import ensure
from bench.params import Params
from bench.plan import Cell, read_cells
from bench.store import Store


def collect(stage: str, name: str, params: Params, here: Path = Path()) -> None:
    """Compute what is missing of one stage and copy its cells to the stage's outputs.

    Outputs are `runs/<method>/<key>/` and `keys/<method>.json`, or `records/<protocol>/<key>/`.

    Args:
        stage: "pretrain" or "evaluate".
        name: the method or the protocol.
        params: how to run; what to run is in the plan.
        here: the folder of the pipeline.
    """
    cells = read_cells(here / "plan" / stage / f"{name}.json")
    known: list[Cell] = []
    if stage == "evaluate":
        for path in sorted((here / "plan" / "pretrain").glob("*.json")):
            known += read_cells(path)
    store = Store()
    ensure(cells, known, params.cluster, store)
    target = here / {"pretrain": "runs", "evaluate": "records"}[stage] / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for cell in cells:
        store.copy_out(cell.key, target / cell.key)
    if stage == "pretrain":
        write_json(here / "keys" / f"{name}.json", [cell.key for cell in cells])
