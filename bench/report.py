"""Records of a plan to reports/: gather reads, render writes; neither computes."""

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from bench.claims.check import judged
from bench.claims.ledger import Line, ledger
from bench.claims.paper import Paper, load, published_beside
from bench.claims.show import as_table, counts
from bench.claims.studies import studies_of
from bench.errors import BenchError
from bench.exhibits.base import DECIMALS, Figure, Table
from bench.exhibits.curves import study_curves
from bench.exhibits.growth import growth_figure, growth_table, point
from bench.exhibits.loss_curves import loss_curves
from bench.exhibits.main_table import main_table
from bench.exhibits.neighbours import neighbours
from bench.exhibits.paired_table import paired_table
from bench.exhibits.pictures import recipe_gallery, retrieval
from bench.exhibits.protocol_table import protocol_table
from bench.exhibits.study import compute_figure, published_table, study_figure, study_table
from bench.exhibits.tuning_table import tuning_table
from bench.exhibits.variance import variance_figure, variance_table, varies_sources
from bench.files import read_json, write_bytes, write_json, write_text
from bench.params import TUNING

CELLS = "cells.json"
GROWTH = "benchmarks/growth.csv"  # what `python -m benchmarks growth` measured
ARRAYS = "arrays.safetensors"
PICTURED = "retrieval"  # the protocol whose arrays are pictures
Sections = Sequence[tuple[str, Sequence[Table | Figure | None]]]
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
            + "\n  ".join(map(_name, missing))
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
    return Records(numbers, _pictures(plan, locate) | _correct(plan, locate))


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


def _correct(plan: dict[str, Any], locate: Locate) -> dict[str, np.ndarray]:
    """Which test images the main table's cells got right, where a record says so: "correct/PROTOCOL/METHOD SEED"."""
    found: dict[str, np.ndarray] = {}
    for cell in (cell for cell in plan["cells"] if cell["stage"] == "evaluate"):
        record, path = locate(cell) / "record.json", locate(cell) / "arrays.safetensors"
        if record.is_file() and path.is_file():
            headline = next(iter(read_json(record)["metrics"]))
            array = load_file(path).get(headline.replace("top1", "correct"))
            if array is not None and array.dtype == np.bool_:
                found[f"correct/{cell['name']}/{cell['method']} {cell['seed']}"] = array
    return found


def _arrays(path: Path, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": array for name, array in load_file(path).items()} if path.is_file() else {}


def _name(cell: dict[str, Any]) -> str:
    study = f" of study {cell['study']}" if "study" in cell else ""
    return f"{cell['key']} {cell['method']} {cell['stage']}@{cell['name']} seed {cell['seed']}{study}"


def judge(numbers: dict[str, Any]) -> list[Line]:
    """The ledger: a verdict on every claim of the papers, from the studies that this profile judges."""
    papers = load()
    chosen = {claim.study for paper in judged(papers, numbers["judged"]).values() for claim in paper.claims}
    return ledger(papers, {name: study for name, study in studies_of(numbers).items() if name in chosen})


def render(records: Records, folder: Path) -> None:
    """Write every exhibit; the same records give the same bytes, on any machine."""
    numbers = records.numbers
    frame = metrics_frame(numbers)
    main = main_table(frame, numbers)
    lines = judge(numbers) if numbers["judged"] else []
    papers = load() if numbers["studies"] else {}
    studies = [(f"Study: {name}", _of_study(name, numbers, papers)) for name in numbers["studies"]]
    sections: Sections = [
        ("Methods and protocols", [main, paired_table(frame, numbers, records.group("correct"))]),
        ("Protocols", [protocol_table(frame, numbers, protocol) for protocol in numbers["protocols"]]),
        ("Training", [loss_curves(numbers), neighbours(numbers), tuning_table(numbers["tuning"])]),
        ("Cost", [growth_table(numbers["growth"]), growth_figure(numbers["growth"], numbers["methods"])]),
        *studies,
        ("Claims", [as_table(lines)] if lines else []),
        ("Recipes", [recipe_gallery(name, arrays) for name, arrays in records.group("recipe").items()]),
        ("Retrieval", [retrieval(name, arrays) for name, arrays in records.group("retrieval").items()]),
    ]
    shown = [exhibit for _, exhibits in sections for exhibit in exhibits if exhibit is not None]
    for part in ("tables", "figures", "plots"):  # not before all is made: what cannot be drawn leaves what was there
        shutil.rmtree(folder / part, ignore_errors=True)
    for exhibit in shown:
        _write(exhibit, folder)
    records.save(folder)
    verdicts = {"claims": counts(lines)} if lines else {}
    write_json(folder / "metrics.json", _headline(main.data, numbers) | verdicts)
    write_json(folder / "plots" / "loss.json", _loss_rows(numbers))
    write_json(folder / "plots" / "accuracy.json", _accuracy_rows(main.data))
    write_text(folder / "index.md", _index(numbers, sections))


def _of_study(name: str, numbers: dict[str, Any], papers: Mapping[str, Paper]) -> list[Table | Figure | None]:
    study = numbers["studies"][name]
    told: list[Table | Figure] = [study_figure(name, study)]
    if varies_sources(study):  # an axis of seeds would tell nothing
        told = [variance_table(name, study, numbers), variance_figure(name, study, numbers)]
    return [
        study_table(name, study),
        published_table(name, published_beside(papers, name)),
        *told,
        compute_figure(name, study),
        *study_curves(name, study),
    ]


def _write(exhibit: Table | Figure, folder: Path) -> None:
    if isinstance(exhibit, Table):
        for kind, text in (("md", exhibit.markdown()), ("csv", exhibit.csv()), ("tex", exhibit.latex())):
            write_text(folder / "tables" / f"{exhibit.name}.{kind}", text)
    else:
        write_bytes(folder / "figures" / f"{exhibit.name}.svg", exhibit.svg)
        write_bytes(folder / "figures" / f"{exhibit.name}.png", exhibit.png)
        if exhibit.data:
            write_text(folder / "figures" / f"{exhibit.name}.csv", exhibit.csv())


def metrics_frame(numbers: dict[str, Any]) -> pd.DataFrame:
    """A row per metric of a record: protocol, metric, method, seed, value."""
    rows = [
        (cell["protocol"], metric, cell["method"], cell["seed"], value)
        for cell in numbers["evaluations"]
        for metric, value in cell["metrics"].items()
    ]
    return pd.DataFrame(rows, columns=["protocol", "metric", "method", "seed", "value"])


def _headline(rows: list[dict[str, Any]], numbers: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row["protocol"], {})[row["method"]] = row["mean"]
    done = numbers["planned"] - len(numbers["missing"])
    return {**found, "cells": {"planned": numbers["planned"], "done": done}}


def _loss_rows(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "method": cell["method"],
            "seed": cell["seed"],
            "epoch": line["epoch"],
            "loss": round(line["loss"], DECIMALS),
        }
        for cell in numbers["pretraining"]
        for line in cell["history"]
    ]


def _accuracy_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "method": row["method"],
            "protocol": row["protocol"],
            "mean": round(100 * row["mean"], 4),
            "low": round(100 * (row["mean"] - (row["half_width_95"] or 0.0)), 4),
            "high": round(100 * (row["mean"] + (row["half_width_95"] or 0.0)), 4),
            "n": row["n"],
        }
        for row in rows
    ]


def _index(numbers: dict[str, Any], sections: Sections) -> str:
    missing = numbers["missing"]
    warning = ""
    if missing:
        listed = "\n".join(f"> - {_name(cell)}" for cell in missing)
        warning = f"> **Not whole: {len(missing)} of {numbers['planned']} cells are missing.**\n{listed}\n\n"
    data = numbers["data"]
    parts = [
        f"# Results on {data['name']}\n\n{warning}"
        f"{numbers['planned'] - len(missing)} of {numbers['planned']} cells. Encoders train on "
        f"{data['fraction']:.0%} of the training rows that are not held out "
        f"({data['validation']:.0%} are, for choices). `dvc repro` makes this page again; "
        f"[{CELLS}]({CELLS}) holds every number behind it, by cell and seed.\n"
    ]
    for title, exhibits in sections:
        shown = [_shown(exhibit) for exhibit in exhibits if exhibit is not None]
        if shown:
            parts.append("\n".join([f"## {title}\n", *shown]))
    return "\n".join(parts)


def _shown(exhibit: Table | Figure) -> str:
    if isinstance(exhibit, Figure):
        numbers = f" Its numbers: [csv](figures/{exhibit.name}.csv)." if exhibit.data else ""
        return f"![{exhibit.alt}](figures/{exhibit.name}.svg)\n\n{exhibit.caption}{numbers}\n"
    files = ", ".join(f"[{kind}](tables/{exhibit.name}.{kind})" for kind in ("csv", "tex"))
    return f"{exhibit.markdown()}\nAs {files}.\n"
