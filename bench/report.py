"""Records of a plan to reports/: gather reads, render writes; neither computes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BenchError
from bench.exhibits.base import DECIMALS
from bench.exhibits.loss_curves import loss_curves
from bench.exhibits.main_table import main_table
from bench.files import read_json, write_bytes, write_json, write_text

CELLS = "cells.json"


class ReportError(BenchError, RuntimeError):
    """A report that cannot be whole; names what is missing."""


def gather_outputs(here: Path) -> dict[str, Any]:
    """Everything the report shows, from the outputs of the pipeline's stages.

    Raises:
        ReportError: there is no plan, or one of its cells has no output; all such are named.
    """
    path = here / "plan" / "report.json"
    if not path.is_file():
        raise ReportError(f"no {path}; run `dvc repro plan` first")
    outputs = {"pretrain": here / "runs", "evaluate": here / "records"}
    gathered = gather(
        read_json(path), lambda cell: outputs[cell["stage"]] / str(cell["name"]) / str(cell["key"])
    )
    missing = gathered["missing"]
    if missing:
        raise ReportError(
            f"{len(missing)} of {gathered['planned']} cells are missing, so nothing is rendered:\n  "
            + "\n  ".join(map(_name, missing))
            + "\n`dvc repro` computes them; `python -m bench report --partial` shows what is there"
        )
    return gathered


def gather(plan: dict[str, Any], locate: Callable[[dict[str, Any]], Path]) -> dict[str, Any]:
    """What there is of a plan's records and histories; `missing` lists the cells without.

    Args:
        plan: as `bench.plan.report_plan` gives it.
        locate: the folder of a cell's files.
    """
    found: dict[str, list[dict[str, Any]]] = {"pretrain": [], "evaluate": []}
    missing = []
    for cell in plan["cells"]:
        content = _content(locate(cell), cell)
        if content is None:
            missing.append(cell)
        else:
            found[cell["stage"]].append(content)
    return {
        "data": plan["data"],
        "methods": plan["methods"],
        "protocols": plan["protocols"],
        "rows": plan["rows"],
        "planned": len(plan["cells"]),
        "missing": missing,
        "pretraining": found["pretrain"],
        "evaluations": found["evaluate"],
    }


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['key']} {cell['method']} {cell['stage']}@{cell['name']} seed {cell['seed']}"


def _content(place: Path, cell: dict[str, Any]) -> dict[str, Any] | None:
    head = {"key": cell["key"], "method": cell["method"], "seed": cell["seed"]}
    try:
        if cell["stage"] == "evaluate":
            metrics = read_json(place / "record.json")["metrics"]
            return {**head, "protocol": cell["name"], "metrics": metrics}
        lines = (place / "history.jsonl").read_text().splitlines()
        return {**head, "history": [json.loads(line) for line in lines]}
    except FileNotFoundError:
        return None


def render(gathered: dict[str, Any], folder: Path) -> None:
    """Write every exhibit; the same records give the same bytes, on any machine."""
    for part in ("tables", "figures", "plots"):
        shutil.rmtree(folder / part, ignore_errors=True)
    frame = metrics_frame(gathered)
    table = main_table(frame, gathered)
    figure = loss_curves(gathered)
    write_text(folder / "tables" / f"{table.name}.md", table.markdown())
    write_text(folder / "tables" / f"{table.name}.csv", table.csv())
    write_bytes(folder / "figures" / f"{figure.name}.svg", figure.svg)
    write_json(folder / CELLS, gathered)
    write_json(folder / "metrics.json", _headline(table.data, gathered))
    write_json(folder / "plots" / "loss.json", _loss_rows(gathered))
    write_json(folder / "plots" / "accuracy.json", _accuracy_rows(table.data))
    write_text(folder / "index.md", _index(gathered, table, figure))


def metrics_frame(gathered: dict[str, Any]) -> pd.DataFrame:
    """A row per metric of a record: protocol, metric, method, seed, value."""
    rows = [
        (cell["protocol"], metric, cell["method"], cell["seed"], value)
        for cell in gathered["evaluations"]
        for metric, value in cell["metrics"].items()
    ]
    return pd.DataFrame(rows, columns=["protocol", "metric", "method", "seed", "value"])


def _headline(rows: list[dict[str, Any]], gathered: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row["protocol"], {})[row["method"]] = row["mean"]
    done = gathered["planned"] - len(gathered["missing"])
    return {**found, "cells": {"planned": gathered["planned"], "done": done}}


def _loss_rows(gathered: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "method": cell["method"],
            "seed": cell["seed"],
            "epoch": line["epoch"],
            "loss": round(line["loss"], DECIMALS),
        }
        for cell in gathered["pretraining"]
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


def _index(gathered: dict[str, Any], table: Any, figure: Any) -> str:
    missing = gathered["missing"]
    warning = ""
    if missing:
        listed = "\n".join(f"> - {_name(cell)}" for cell in missing)
        warning = f"> **Not whole: {len(missing)} of {gathered['planned']} cells are missing.**\n{listed}\n\n"
    data = gathered["data"]
    return (
        f"# Results on {data['name']}\n\n{warning}"
        f"{gathered['planned'] - len(missing)} of {gathered['planned']} cells. Encoders train on "
        f"{data['fraction']:.0%} of the training rows that are not held out "
        f"({data['validation']:.0%} are, for choices). `dvc repro` makes this page again; "
        "[cells.json](cells.json) holds every number behind it, by cell and seed.\n\n"
        f"## Methods and protocols\n\n{table.markdown()}\n"
        f"Numbers: [tables/{table.name}.csv](tables/{table.name}.csv)\n\n"
        f"## Training\n\n![{figure.alt}](figures/{figure.name}.svg)\n\n{figure.caption}\n"
    )
