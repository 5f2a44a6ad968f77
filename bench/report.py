"""Records to reports/: every table, figure and the page; nothing is computed."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.claims.check import judged
from bench.claims.ledger import Line, ledger
from bench.claims.paper import Paper, load, published_beside
from bench.claims.show import as_table, counts
from bench.claims.studies import studies_of
from bench.exhibits.base import DECIMALS, Figure, Table
from bench.exhibits.curves import study_curves
from bench.exhibits.growth import growth_figure, growth_table
from bench.exhibits.loss_curves import loss_curves
from bench.exhibits.main_table import main_table
from bench.exhibits.neighbours import neighbours
from bench.exhibits.paired_table import paired_table
from bench.exhibits.pictures import recipe_gallery, retrieval
from bench.exhibits.protocol_table import protocol_table
from bench.exhibits.study import compute_figure, published_table, study_figure, study_table
from bench.exhibits.tuning_table import tuning_table
from bench.exhibits.variance import variance_figure, variance_table, varies_sources
from bench.files import write_bytes, write_json, write_text
from bench.records import CELLS, Records, label, metrics_frame

Sections = Sequence[tuple[str, Sequence[Table | Figure | None]]]


def judge(numbers: dict[str, Any], papers: Mapping[str, Paper]) -> list[Line]:
    """The ledger: a verdict on every claim of the papers, from the studies that this profile judges."""
    chosen = {claim.study for paper in judged(papers, numbers["judged"]).values() for claim in paper.claims}
    return ledger(papers, {name: study for name, study in studies_of(numbers).items() if name in chosen})


def render(records: Records, folder: Path) -> None:
    """Write every exhibit; the same records give the same bytes, on any machine."""
    numbers = records.numbers
    frame = metrics_frame(numbers)
    main = main_table(frame, numbers)
    papers = load()
    lines = judge(numbers, papers) if numbers["judged"] else []
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
        listed = "\n".join(f"> - {label(cell)}" for cell in missing)
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
