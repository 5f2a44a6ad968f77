"""A cell, for people: what it is, what it gave, where it lies."""

import json

import yaml

from bench.files import read_json
from bench.plan import Cell
from bench.progress import progress
from bench.store import CELL, Store


def describe(cell: Cell, store: Store) -> str:
    """Its label, state, files, results and whole config, as text."""
    place = store.path(cell.key)
    lines = [f"{cell.key}  {cell.stage} {cell.label}"]
    if store.has(cell.key):
        lines.append(f"done, in {place}:")
        lines += [f"  {name}" for name in read_json(place / CELL)["files"]]
        lines += _results(cell, store)
    elif failure := store.failure(cell.key):
        lines.append(f"failed: {failure['error']}" + (f"\n  log: {failure['log']}" if failure["log"] else ""))
    else:
        lines.append(f"not computed ({progress(store, cell.key):.0%} done); `python -m bench submit` does it")
    if cell.needs is not None:
        lines.append(f"reads the encoder of {cell.needs}")
    return "\n".join([*lines, "", yaml.safe_dump(cell.config, sort_keys=False).rstrip()])


def _results(cell: Cell, store: Store) -> list[str]:
    place = store.path(cell.key)
    if cell.stage == "evaluate":
        metrics = read_json(place / "record.json")["metrics"]
        lines = [f"  {name} = {value}" for name, value in metrics.items()]
    else:
        history = (place / "history.jsonl").read_text().splitlines()
        lines = [f"  epoch {e.pop('epoch')}: {e}" for e in map(json.loads, history[-1:])]
    environment = store.environment(cell.key)
    if "seconds" in environment:
        lines.append(f"computed in {environment['seconds']:.1f} s on {environment.get('gpu', environment['cpu'])}")
    return lines
