"""params.yaml and the data's manifests to cells with keys. Imports no torch.

A key hashes everything that can change a result and nothing else: data and rows, method and options,
recipe, encoder, optimiser, schedule, numerics, versions of the numeric packages, seed and code.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.data import READERS
from bench.data.prepared import ensure, is_prepared
from bench.encoders import ENCODERS
from bench.errors import BenchError
from bench.evaluators import EVALUATORS
from bench.files import read_json, write_json
from bench.fingerprint import code_hash
from bench.limits import check_pretraining, check_protocol, left_out
from bench.methods import METHODS
from bench.options import NamesDataSets
from bench.params import Point, marked, options_model
from bench.params import points as points_of
from bench.registry import ROOT, Component, UnknownNameError
from bench.settings import Params, combinations
from bench.store import Store

NUMERIC_PACKAGES = ("torch", "torchvision", "numpy", "numba", "scikit-learn")
SHOWING_PACKAGES = ("matplotlib", "numpy", "pandas", "scipy")
DIGITS = 20  # of a key, in hexadecimal
RAW_PIXELS = "raw_pixels"
PREPARE = "prepare"  # what is held by who makes data sets ready: two at once would write the same files


class PlanError(BenchError, ValueError):
    """A plan that cannot be made or read; says what is missing and which command makes it."""


@dataclass(frozen=True)
class Cell:
    """A unit of computing.

    Args:
        key: the hash of `config`.
        stage: "pretrain" or "evaluate".
        name: the method, or the protocol.
        method: whose encoder this is of; `raw_pixels` for none.
        seed: the cell's seed.
        config: all that can change the result.
        manifest: of the image set, which says where to find what `config` names by checksum.
        needs: the key of the pretraining cell that an evaluation cell reads.
        point: a study's levels, where the cell is not one of the main table's.
    """

    key: str
    stage: str
    name: str
    method: str
    seed: int
    config: dict[str, Any]
    manifest: dict[str, Any]
    needs: str | None = None
    point: str = ""

    @property
    def label(self) -> str:
        """How people name it."""
        who = f"{self.method} {self.name}" if self.stage == "evaluate" else self.method
        return f"{who} seed {self.seed}" + (f" ({self.point})" if self.point else "")


@dataclass(frozen=True)
class StudyPoint:
    """One combination of a study's levels, and its cells."""

    levels: dict[str, Any]
    cells: list[Cell]


@dataclass(frozen=True)
class Plan:
    """Every cell that params.yaml asks for, by stage and name; `remarks` are for people."""

    pretrain: dict[str, list[Cell]]
    evaluate: dict[str, list[Cell]]
    study: dict[str, list[StudyPoint]]
    remarks: list[str] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """Each once, the main table's first."""
        found: dict[str, Cell] = {}
        for groups in self.stages().values():
            for cell in (cell for cells in groups.values() for cell in cells):
                found.setdefault(cell.key, cell)
        return list(found.values())

    def stages(self) -> dict[str, dict[str, list[Cell]]]:
        """The cells of every stage of the pipeline that computes, by stage and name."""
        studies = {name: [c for point in points for c in point.cells] for name, points in self.study.items()}
        return {"pretrain": self.pretrain, "evaluate": self.evaluate, "study": studies}

    def write(self, folder: Path, params: Params) -> None:
        """A file per stage: `pretrain/<method>.json`, `evaluate/<protocol>.json` and so on; `report.json`."""
        for stage, groups in self.stages().items():
            for name, cells in groups.items():
                write_json(folder / stage / f"{name}.json", [asdict(cell) for cell in cells])
        write_json(folder / "report.json", report_plan(self, params))


def report_plan(plan: Plan, params: Params) -> dict[str, Any]:
    """What the report depends on: the cells it shows, and the code and packages that show them."""

    def brief(cells: Iterable[Cell]) -> list[dict[str, Any]]:
        return [{k: getattr(c, k) for k in ("key", "stage", "name", "method", "seed")} for c in cells]

    main = [c for group in (plan.pretrain, plan.evaluate) for cells in group.values() for c in cells]
    return {
        "code": code_hash(["bench.report"]),
        "versions": _versions(SHOWING_PACKAGES),
        "data": params.data.model_dump(),
        "methods": list(params.methods),
        "rows": [*([RAW_PIXELS] if params.raw_pixels else []), *params.methods, *params.checkpoints],
        "protocols": list(params.evaluations),
        "recipes": {name: params.training_of(name).recipe for name in params.methods},
        "judged": params.judged,
        "papers": _papers() if params.judged or params.studies else None,
        "cells": brief(main),
        "studies": {
            name: {
                "base": params.studies[name].base,
                **_shown_data(params, params.studies[name].data or params.data.name),
                "fixed": params.studies[name].fixed,
                "protocols": params.studies[name].protocols,
                "curves": params.studies[name].curves,
                "points": [{"levels": point.levels, "cells": brief(point.cells)} for point in points],
            }
            for name, points in plan.study.items()
        },
    }


def _papers() -> str:
    """A hash of the claims and the published numbers, which are no code: verdicts and studies show them."""
    files = sorted((ROOT / "bench" / "papers").iterdir())
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _shown_data(params: Params, name: str) -> dict[str, str]:
    """A study's image set, and what its reader wants every caption to say."""
    reader = READERS.component(params.datasets[name].reader)
    return {"data": name, "caption": str(reader.module_constant("NOTE", ""))}


def outputs(stage: str, name: str) -> dict[str, str]:
    """Where a stage of the pipeline lays out its cells, by the cells' own stage."""
    if stage == "study":
        return {"pretrain": f"runs/studies/{name}", "evaluate": f"records/studies/{name}"}
    return {stage: f"{'runs' if stage == 'pretrain' else 'records'}/{name}"}


def prune(plan: Plan, here: Path) -> None:
    """Remove outputs of stages that the plan has no more: DVC hashes the folders that hold them."""
    kept = {
        folder for stage, groups in plan.stages().items() for name in groups for folder in outputs(stage, name).values()
    }
    for folder in ("runs", "records", "runs/studies", "records/studies"):
        for place in (here / folder).glob("*"):
            if place.name != "studies" and str(place.relative_to(here)) not in kept:
                shutil.rmtree(place)
    for place in (here / "keys").glob("*.json"):
        if place.stem not in plan.pretrain:
            place.unlink()


def read_cells(path: Path) -> list[Cell]:
    """The cells of one stage's plan file.

    Raises:
        PlanError: there is no such file.
    """
    if not path.is_file():
        raise PlanError(f"no {path}; run `dvc repro plan` first")
    return [Cell(**cell) for cell in read_json(path)]


def read_manifests(params: Params, folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of all data sets, as `prepare` wrote them.

    Raises:
        PlanError: one is missing.
    """
    found = {}
    for name in params.datasets:
        path = folder / f"{name}.json"
        if not path.is_file():
            raise PlanError(f"no {path}; run `dvc repro prepare@{name}` first")
        found[name] = read_json(path)
    return {**found, **_checkpoint_manifests(params, folder, fresh=False)}


def _checkpoint_manifests(params: Params, folder: Path, *, fresh: bool) -> dict[str, dict[str, Any]]:
    if not params.checkpoints:
        return {}
    from bench.external import read_manifests  # it imports this module

    return read_manifests(params, folder, fresh=fresh)


def prepare_all(params: Params, folder: Path) -> dict[str, dict[str, Any]]:
    """Make every data set ready that is not, and give their manifests; one command at a time."""
    sets = {name: (dataset.reader, dataset.options) for name, dataset in params.datasets.items()}
    # what only reads must get by beside a full disk, so nothing is held where nothing is to be made
    ready = all(is_prepared(name, *given) for name, given in sets.items())
    with nullcontext() if ready else Store().holds.held(PREPARE):
        found = {name: ensure(name, *given, folder) for name, given in sets.items()}
    return {**found, **_checkpoint_manifests(params, folder, fresh=True)}


def make_plan(params: Params, manifests: Mapping[str, Mapping[str, Any]]) -> Plan:
    """All cells, with their keys."""
    pretrain = {
        method: [_pretraining_cell(params, manifests, method, seed) for seed in params.seeds]
        for method in params.methods
    }
    evaluate = {
        protocol: list(_evaluation_cells(params, manifests, protocol, pretrain)) for protocol in params.evaluations
    }
    if params.checkpoints:
        from bench.external import planned  # it imports this module

        for cell in planned(params, manifests, Plan(pretrain, evaluate, {})):
            evaluate[cell.name].append(cell)
    known = {cell.key for cells in pretrain.values() for cell in cells}
    study = {}
    for name, wanted in params.studies.items():
        points = points_of(params, f"studies.{name}", wanted.combinations(), wanted.overrides())
        study[name] = [_study_point(params, manifests, name, point, known) for point in points]
    plan = Plan(pretrain, evaluate, study, left_out(params, manifests))
    if params.judged:
        from bench.claims.check import check_plan  # where nothing is judged, nothing is read
        from bench.claims.paper import load

        check_plan(load(), report_plan(plan, params))
    return plan


def tuning_points(params: Params, manifests: Mapping[str, Any], method: str) -> list[StudyPoint]:
    """A method's trials: trained at the tuning seeds, scored on the validation part."""
    where, protocol = f"tuning.trials.{method}", params.tuning.protocol
    points = []
    for point in points_of(params, where, combinations(params.tuning.trials[method])):
        trained = [_pretraining_cell(point.params, manifests, method, seed) for seed in params.tuning.seeds]
        scored = [_evaluation_cell(point.params, manifests, protocol, cell, "validation") for cell in trained]
        cells = [replace(cell, point=_levels(point)) for cell in (*trained, *scored)]
        points.append(StudyPoint(point.levels, cells))
    return points


def _levels(point: Point) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in point.levels.items())


def _study_point(params: Params, manifests: Mapping[str, Any], name: str, point: Point, known: set[str]) -> StudyPoint:
    study, settings = params.studies[name], point.params
    method = study.method_of(point.levels)
    assert method is not None  # as the params' checks have seen
    trained = [_pretraining_cell(settings, manifests, method, seed) for seed in settings.seeds]
    cells = [
        *trained,
        *(_evaluation_cell(settings, manifests, p, cell) for p in study.protocols for cell in trained),
    ]
    named = [cell if {cell.key, cell.needs} & known else replace(cell, point=_levels(point)) for cell in cells]
    return StudyPoint(point.levels, named)


def find(plan: Plan, text: str) -> Cell:
    """The cell whose key begins with `text`.

    Raises:
        UnknownNameError: none does, or several do.
    """
    found = [cell for cell in plan.cells() if cell.key.startswith(text)]
    if len(found) != 1:
        few = ", ".join(f"{c.key} ({c.label})" for c in found[:5]) or "`python -m bench cells` lists them"
        raise UnknownNameError(f"{len(found)} cells have a key that begins with '{text}': {few}")
    return found[0]


def _pretraining_cell(params: Params, manifests: Mapping[str, Any], method: str, seed: int) -> Cell:
    training = params.training_of(method)
    component = METHODS.component(method)
    encoder = ENCODERS.component(params.encoder.name)
    manifest = manifests[params.data.name]
    if component.constant("trains", True):
        check_pretraining(params, manifest, method)
    fields = training.model_dump(exclude={"numerics", "threads", "device"})
    recipe = params.recipes[fields["recipe"]]
    fields["recipe"] = recipe.model_dump(exclude_unset=True)
    config = {
        "stage": "pretrain",
        "data": {
            "sha256": manifest["sha256"],
            "validation": params.data.validation,
            "fraction": params.data.fraction,
        },
        "method": {"name": method, "options": _options(component, params.methods[method])},
        "encoder": {"name": encoder.name, "options": _options(encoder, params.encoder.options)},
        # a method that does not train is the same whatever training would have been
        "training": fields if component.constant("trains", True) else None,
        "numerics": training.numerics,
        "threads": training.threads,
        "device": training.device,
        "versions": _versions(NUMERIC_PACKAGES),
        "seed": seed,
    }
    return _cell("pretrain", method, method, config, manifest)


def code_modules(config: Mapping[str, Any]) -> list[str]:
    """The modules whose code, with all they import, decides what a cell gives."""
    both = ["bench.numerics", "bench.data.prepared"]
    if config["stage"] == "evaluate":
        return [*both, "bench.evaluate", EVALUATORS.component(config["protocol"]["name"]).module]
    chosen = (METHODS.component(config["method"]["name"]), ENCODERS.component(config["encoder"]["name"]))
    return [*both, "bench.pretrain", *(component.module for component in chosen)]


def current_versions() -> dict[str, str]:
    """The versions of the numeric packages that are installed here."""
    return _versions(NUMERIC_PACKAGES)


def _options(component: Component, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as their types have them: 1 and 1.0 are one temperature."""
    return options_model(component).model_validate(given).model_dump()


def _evaluation_cells(
    params: Params,
    manifests: Mapping[str, Any],
    protocol: str,
    pretrain: Mapping[str, list[Cell]],
) -> Iterator[Cell]:
    check_protocol(params, manifests[params.data.name], protocol)
    if params.raw_pixels and not EVALUATORS.component(protocol).module_constant("NEEDS_ENCODER", False):
        yield _evaluation_cell(params, manifests, protocol, None)
    for cells in pretrain.values():
        for cell in cells:
            yield _evaluation_cell(params, manifests, protocol, cell)


def _evaluation_cell(
    params: Params, manifests: Mapping[str, Any], protocol: str, pretrained: Cell | None, query: str = "test"
) -> Cell:
    manifest = manifests[params.data.name]
    component = EVALUATORS.component(protocol)
    options = _options(component, params.evaluations[protocol])
    targets = {name: dict(manifests[name]) for mark in marked(component, NamesDataSets) for name in options[mark]}
    source = pretrained.config if pretrained else params.defaults.model_dump()
    config = {
        "stage": "evaluate",
        "protocol": {"name": protocol, "options": options},
        "source": {"pretrained": pretrained.key} if pretrained else {"pixels": manifest["sha256"]},
        "data": {"sha256": manifest["sha256"], "validation": params.data.validation},
        "query": query,
        "numerics": source["numerics"],
        "threads": source["threads"],
        "device": source["device"],
        "versions": _versions(NUMERIC_PACKAGES),
        "seed": pretrained.seed if pretrained else 0,
    }
    if targets:
        config["targets"] = {n: {key: target[key] for key in ("sha256", "metric")} for n, target in targets.items()}
        manifest = {**manifest, "targets": targets}
    method = pretrained.method if pretrained else RAW_PIXELS
    needs = pretrained.key if pretrained else None
    return _cell("evaluate", protocol, method, config, manifest, needs)


def _cell(
    stage: str,
    name: str,
    method: str,
    config: dict[str, Any],
    manifest: Any,
    needs: str | None = None,
) -> Cell:
    config = {**config, "code": code_hash(code_modules(config))}
    text = json.dumps(config, sort_keys=True, allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    return Cell(key, stage, name, method, config["seed"], config, dict(manifest), needs)


@cache
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Public parts of versions: `+cpu` and `+cu130` are left out."""
    return {name: version(name).partition("+")[0] for name in packages}
