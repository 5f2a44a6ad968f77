"""params.yaml and the data's manifests to cells with keys. Imports no torch.

A key hashes everything that can change a result and nothing else: data and rows, method and options,
recipe, encoder, optimiser, schedule, numerics, versions of the numeric packages, seed and code.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.data.prepared import prepare
from bench.encoders import ENCODERS
from bench.errors import BenchError
from bench.evaluators import EVALUATORS
from bench.files import read_json, write_json
from bench.fingerprint import code_hash
from bench.methods import METHODS
from bench.params import Params
from bench.registry import UnknownNameError

NUMERIC_PACKAGES = ("torch", "numpy")
DIGITS = 20  # of a key, in hexadecimal
RAW_PIXELS = "raw_pixels"


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
    """

    key: str
    stage: str
    name: str
    method: str
    seed: int
    config: dict[str, Any]
    manifest: dict[str, Any]
    needs: str | None = None

    @property
    def label(self) -> str:
        """How people name it."""
        who = self.method if self.stage == "pretrain" else f"{self.method} {self.name}"
        return f"{who} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Every cell that params.yaml asks for."""

    pretrain: dict[str, list[Cell]]
    evaluate: dict[str, list[Cell]]

    def cells(self) -> list[Cell]:
        """All of them, pretraining cells first."""
        return [c for group in (self.pretrain, self.evaluate) for cs in group.values() for c in cs]

    def write(self, folder: Path, params: Params) -> None:
        """A file per stage: `pretrain/<method>.json`, `evaluate/<protocol>.json`, `report.json`."""
        for stage, groups in (("pretrain", self.pretrain), ("evaluate", self.evaluate)):
            for name, cells in groups.items():
                write_json(folder / stage / f"{name}.json", [asdict(cell) for cell in cells])
        write_json(folder / "report.json", report_plan(self, params))


def report_plan(plan: Plan, params: Params) -> dict[str, Any]:
    """What the report depends on: the cells it shows and the code that shows them."""
    keys = ("key", "stage", "name", "method", "seed")
    return {
        "code": code_hash(["bench.report"]),
        "data": params.data.model_dump(),
        "methods": list(params.methods),
        "rows": [*([RAW_PIXELS] if params.raw_pixels else []), *params.methods],
        "protocols": list(params.evaluations),
        "cells": [{k: getattr(cell, k) for k in keys} for cell in plan.cells()],
    }


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
    return found


def prepare_all(params: Params, folder: Path) -> dict[str, dict[str, Any]]:
    """Prepare every data set, and give their manifests."""
    return {
        name: prepare(name, dataset.reader, dataset.options, folder)
        for name, dataset in params.datasets.items()
    }


def make_plan(params: Params, manifests: Mapping[str, Mapping[str, Any]]) -> Plan:
    """All cells, with their keys."""
    pretrain = {
        method: [_pretraining_cell(params, manifests, method, seed) for seed in params.seeds]
        for method in params.methods
    }
    evaluate = {
        protocol: list(_evaluation_cells(params, manifests, protocol, pretrain))
        for protocol in params.evaluations
    }
    return Plan(pretrain, evaluate)


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
        "method": {"name": method, "options": params.methods[method]},
        "encoder": {"name": encoder.name, "options": params.encoder.options},
        # a method that does not train is the same whatever training would have been
        "training": fields if component.constant("trains", True) else None,
        "numerics": training.numerics,
        "threads": training.threads,
        "device": training.device,
        "versions": _versions(),
        "seed": seed,
        "code": code_hash(["bench.pretrain", component.module, encoder.module]),
    }
    return _cell("pretrain", method, method, config, manifest)


def _evaluation_cells(
    params: Params,
    manifests: Mapping[str, Any],
    protocol: str,
    pretrain: Mapping[str, list[Cell]],
) -> Iterator[Cell]:
    if params.raw_pixels:
        yield _evaluation_cell(params, manifests, protocol, None)
    for cells in pretrain.values():
        for cell in cells:
            yield _evaluation_cell(params, manifests, protocol, cell)


def _evaluation_cell(
    params: Params, manifests: Mapping[str, Any], protocol: str, pretrained: Cell | None
) -> Cell:
    manifest = manifests[params.data.name]
    source = pretrained.config if pretrained else params.defaults.model_dump()
    config = {
        "stage": "evaluate",
        "protocol": {"name": protocol, "options": params.evaluations[protocol]},
        "source": {"pretrained": pretrained.key} if pretrained else {"pixels": manifest["sha256"]},
        "data": {"sha256": manifest["sha256"], "validation": params.data.validation},
        "query": "test",
        "numerics": source["numerics"],
        "threads": source["threads"],
        "device": source["device"],
        "versions": _versions(),
        "seed": pretrained.seed if pretrained else 0,
        "code": code_hash(["bench.evaluate", EVALUATORS.component(protocol).module]),
    }
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
    text = json.dumps(config, sort_keys=True, allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    return Cell(key, stage, name, method, config["seed"], config, dict(manifest), needs)


@cache
def _versions() -> dict[str, str]:
    """Public parts of the numeric packages' versions: `+cpu` and `+cu130` are left out."""
    return {name: version(name).partition("+")[0] for name in NUMERIC_PACKAGES}
