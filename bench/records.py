"""What a report is made of: the records and histories of a plan's cells, gathered and kept; nothing is computed."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from bench.errors import BenchError
from bench.exhibits.growth import point
from bench.files import read_json, write_json
from bench.params import TUNING

CELLS = "cells.json"
GROWTH = "benchmarks/growth.csv"  # what `python -m benchmarks growth` measured
ARRAYS = "arrays.safetensors"
PICTURED = "retrieval"  # the protocol whose arrays are pictures
Locate = Callable[[dict[str, Any]], Path]


class ReportError(BenchError, RuntimeError):
    """A report that cannot be whole; names what is missing."""


@dataclass(frozen=True)
class Records:
    """All that exhibits are made of: `numbers` as JSON, and `arrays` by "kind/name/array"."""

    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, kind: str) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of one kind, by name."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for path, array in sorted(self.arrays.items()):
            of, name, part = path.split("/")
            if of == kind:
                found.setdefault(name, {})[part] = array
        return found

    def save(self, folder: Path) -> None:
        """Write them, so that they can be rendered again."""
        write_json(folder / CELLS, self.numbers)
        save_file(dict(sorted(self.arrays.items())), folder / ARRAYS)

    @classmethod
    def read(cls, folder: Path) -> "Records":
        """What `save` wrote.

        Raises:
            ReportError: it is not there.
        """
        if not (folder / CELLS).is_file() or not (folder / ARRAYS).is_file():
            raise ReportError(f"no {folder / CELLS} and {ARRAYS}; `make repro` makes them")
        return cls(read_json(folder / CELLS), load_file(folder / ARRAYS))


def gather_outputs(here: Path) -> Records:
    """Everything the report shows, from the outputs of the pipeline's stages.

    Raises:
        ReportError: there is no plan, or one of its cells has no output; all such are named.
    """
    path = here / "plan" / "report.json"
    if not path.is_file():
        raise ReportError(f"no {path}; run `dvc repro plan` first")

    def locate(cell: dict[str, Any]) -> Path:
        folder = {"pretrain": "runs", "evaluate": "records"}[cell["stage"]]
        place = f"studies/{cell['study']}" if "study" in cell else cell["name"]
        return here / folder / place / cell["key"]

    records = gather(read_json(path), locate, read_beside(here))
    missing = records.numbers["missing"]
    if missing:
        raise ReportError(
            f"{len(missing)} of {records.numbers['planned']} cells are missing, so nothing is rendered:\n  "
            + "\n  ".join(map(label, missing))
            + "\n`dvc repro` computes them; `python -m bench report --partial` shows what is there"
        )
    return records


def read_beside(here: Path) -> dict[str, Any]:
    """What is no cell's: trials of `python -m bench tune`, and how costs grow; none where nothing was measured."""
    tuning = read_json(here / TUNING) if (here / TUNING).is_file() else {"trials": []}
    lines = (here / GROWTH).read_text().splitlines() if (here / GROWTH).is_file() else []
    return {"tuning": tuning, "growth": [point(line) for line in csv.DictReader(lines)]}


def gather(plan: dict[str, Any], locate: Locate, beside: dict[str, Any]) -> Records:
    """What there is of a plan's records and histories; `missing` lists the cells without.

    Args:
        plan: as `bench.plan.report_plan` gives it.
        locate: the folder of a cell's files.
        beside: what `read_beside` gives.
    """
    missing: dict[str, dict[str, Any]] = {}
    main = _contents(plan["cells"], locate, missing)
    studies: dict[str, Any] = {}
    for name, study in plan["studies"].items():
        points = [
            {"levels": point["levels"], **_contents([{**c, "study": name} for c in point["cells"]], locate, missing)}
            for point in study["points"]
        ]
        studies[name] = {**study, "points": points}
    every = [*plan["cells"], *(c for s in plan["studies"].values() for p in s["points"] for c in p["cells"])]
    numbers = {
        **{k: plan[k] for k in ("data", "methods", "protocols", "rows", "recipes", "judged")},
        "planned": len({cell["key"] for cell in every}),
        "missing": list(missing.values()),
        **main,
        "studies": studies,
        **beside,
    }
    metrics = {cell["key"]: cell["metrics"] for cell in main["evaluations"]}
    return Records(numbers, _pictures(plan, locate) | _correct(plan, locate, metrics))


def _contents(
    cells: Iterable[dict[str, Any]], locate: Locate, missing: dict[str, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"pretrain": [], "evaluate": []}
    for cell in cells:
        content = _content(locate(cell), cell)
        if content is None:
            missing[cell["key"]] = cell
        else:
            found[cell["stage"]].append(content)
    return {"pretraining": found["pretrain"], "evaluations": found["evaluate"]}


def _content(place: Path, cell: dict[str, Any]) -> dict[str, Any] | None:
    head = {"key": cell["key"], "method": cell["method"], "seed": cell["seed"]}
    try:
        if cell["stage"] == "evaluate":
            return {**head, "protocol": cell["name"], "metrics": read_json(place / "record.json")["metrics"]}
        lines = (place / "history.jsonl").read_text().splitlines()
        return {**head, "history": [json.loads(line) for line in lines], "cost": read_json(place / "cost.json")}
    except FileNotFoundError:
        return None


def _pictures(plan: dict[str, Any], locate: Locate) -> dict[str, np.ndarray]:
    """Of the first seed: views of the first method of each recipe, and every method's retrieved rows."""
    arrays: dict[str, np.ndarray] = {}
    recipes: set[str] = set()
    first = min((cell["seed"] for cell in plan["cells"] if cell["stage"] == "pretrain"), default=0)
    for cell in (cell for cell in plan["cells"] if cell["seed"] == first):
        recipe = plan["recipes"].get(cell["method"])
        if cell["stage"] == "pretrain" and recipe not in recipes:
            found = _arrays(locate(cell) / "views.safetensors", f"recipe/{recipe}")
            recipes |= {recipe} if found else set()
        elif cell["stage"] == "evaluate" and cell["name"] == PICTURED and cell["method"] in plan["methods"]:
            found = _arrays(locate(cell) / "arrays.safetensors", f"retrieval/{cell['method']}")
        else:
            continue
        arrays |= found
    return arrays


def _correct(plan: dict[str, Any], locate: Locate, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Which test images the main table's cells got right, where a record says so: "correct/PROTOCOL/METHOD SEED"."""
    found: dict[str, np.ndarray] = {}
    for cell in (cell for cell in plan["cells"] if cell["key"] in metrics):
        path = locate(cell) / "arrays.safetensors"
        if path.is_file():
            headline = next(iter(metrics[cell["key"]]))
            array = load_file(path).get(headline.replace("top1", "correct"))
            if array is not None and array.dtype == np.bool_:
                found[f"correct/{cell['name']}/{cell['method']} {cell['seed']}"] = array
    return found


def _arrays(path: Path, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": array for name, array in load_file(path).items()} if path.is_file() else {}


def label(cell: dict[str, Any]) -> str:
    """A planned cell, for people."""
    study = f" of study {cell['study']}" if "study" in cell else ""
    return f"{cell['key']} {cell['method']} {cell['stage']}@{cell['name']} seed {cell['seed']}{study}"


def metrics_frame(numbers: dict[str, Any]) -> pd.DataFrame:
    """A row per metric of a record: protocol, metric, method, seed, value."""
    rows = [
        (cell["protocol"], metric, cell["method"], cell["seed"], value)
        for cell in numbers["evaluations"]
        for metric, value in cell["metrics"].items()
    ]
    return pd.DataFrame(rows, columns=["protocol", "metric", "method", "seed", "value"])
